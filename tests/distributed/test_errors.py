"""A rank that raises, or says something else, is heard by all: nobody hangs, and the next correct call works."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from shards import samples, shard, union
from torch import nn

import curvext as cx
from curvext.operators.sample_gradients import SampleGradients

CUT = "uneven"


class Fragile(Exception):
    """What a model may raise."""


def culprit_of(world):
    """A rank that has two batches."""
    return {2: 0, 3: 2}[world]


class Setting:
    """A risk on this rank's shard, whose model raises after some forward passes if asked to."""

    def __init__(self, rank, world, cache=False):
        self.culprit = rank == culprit_of(world)
        self.posed = pose("batch_norm_1d", "ce_weight", samples=samples(CUT, world))
        self.model, self.loss = self.held(self.posed.model, world), self.posed.loss
        self.data = shard(self.posed, CUT, rank, world)
        self.left = None
        self.risk = cx.EmpiricalRisk(
            self.model,
            self.loss,
            self.data,
            cache=cache,
            forward=self.forward,
            process_group=dist.group.WORLD,
        )
        self.v = self.posed.vectors()

    def held(self, model, world):
        """The model as this rank has it."""
        return model

    def forward(self, model, batch):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Fragile("enough")
        return model(batch[0])

    def breaking(self, after=0):
        """On the culprit the model raises after so many batches."""
        if self.culprit:
            self.left = after
        return self.risk

    def here(self, there, elsewhere):
        """Something else on the culprit."""
        return there if self.culprit else elsewhere


def nan(v):
    v = v.clone()
    v[0] = torch.nan
    return v


def twice(v):
    return torch.cat([v, v], 1)


def broken_ring(s):
    met, calls = SampleGradients._met, []

    def breaking(rows, mine, theirs):
        calls.append(1)
        if s.culprit and len(calls) == 2:  # the first is of the rank with itself
            raise Fragile("enough")
        return met(rows, mine, theirs)

    SampleGradients._met = breaking
    try:
        return s.risk.empirical_fisher().gram()
    finally:
        SampleGradients._met = met


#: what one rank raises, and where
RAISES = {
    "a product, in the forward pass": ("Fragile", lambda s: s.breaking().hessian() @ s.v),
    "a product, in the second batch": ("Fragile", lambda s: s.breaking(1).ggn() @ s.v),
    "a product, nan in v": ("ValueError", lambda s: s.risk.ggn() @ s.here(nan(s.v), s.v)),
    "a product, the shape of v": ("ValueError", lambda s: s.risk.ggn() @ s.here(s.v[1:], s.v)),
    "a product, the dtype of v": ("TypeError", lambda s: s.risk.ggn() @ s.here(s.v.float(), s.v)),
    "a product, no tensor": ("TypeError", lambda s: s.risk.ggn() @ s.here([1.0], s.v)),
    "a product by name": (
        "ValueError",
        lambda s: s.risk.ggn() @ s.here({}, s.risk.ggn().split(s.v[:, 0])),
    ),
    "a sum of operators": (
        "Fragile",
        lambda s: (2 * s.breaking(3).ggn() + s.risk.hessian()) @ s.v,
    ),
    "to_dense": ("Fragile", lambda s: s.breaking(1).ggn().to_dense()),
    "value": ("Fragile", lambda s: s.breaking().value()),
    "gradient": ("Fragile", lambda s: s.breaking().gradient()),
    "explain": ("Fragile", lambda s: s.breaking().explain()),
    "norms": ("Fragile", lambda s: s.breaking().empirical_fisher().gradient_norms()),
    "diagonal": ("Fragile", lambda s: s.breaking().mc_fisher().diagonal()),
    "trace": ("Fragile", lambda s: s.breaking().empirical_fisher().trace()),
    "no closed form": (
        "NoClosedFormError",
        lambda s: s.here(s.risk.hessian().trace, s.risk.value)(),
    ),
    "gram": ("Fragile", lambda s: s.breaking().empirical_fisher().gram()),
    "gram, in the ring": ("Fragile", broken_ring),
    "solve, at the end": (
        "Fragile",
        lambda s: s.breaking(6).empirical_fisher().solve(s.v, damping=0.1),
    ),
    "solve, damping": (
        "ValueError",
        lambda s: s.risk.empirical_fisher().solve(s.v, damping=s.here(-1.0, 0.1)),
    ),
    "eigh, at the end": ("Fragile", lambda s: s.breaking(4).empirical_fisher().eigh(1)),
    "draws": (
        "ValueError",
        lambda s: s.risk.mc_fisher(samples=s.here(0, 1)) @ s.v,
    ),
    "a word": (
        "ValueError",
        lambda s: s.risk.empirical_fisher(per=s.here("pixel", "sample")) @ s.v,
    ),
    "making a risk": (
        "ValueError",
        lambda s: cx.EmpiricalRisk(
            s.model,
            s.loss,
            s.data,
            params=s.here("nothing", None),
            process_group=dist.group.WORLD,
        ),
    ),
    "making an operator": (
        "ValueError",
        lambda s: cx.MCFisherOperator(
            s.model, s.loss, s.data, samples=s.here(0, 1), process_group=dist.group.WORLD
        ),
    ),
    "making an operator of one-shot data": (
        "TypeError",
        lambda s: cx.GGNOperator(
            s.model, s.loss, s.here(iter([]), s.data), process_group=dist.group.WORLD
        ),
    ),
    "a function": (
        "ValueError",
        lambda s: cx.fisher_diagonal(
            s.model,
            s.loss,
            s.data,
            kind=s.here("best", "empirical"),
            process_group=dist.group.WORLD,
        ),
    ),
    "cg, in the third product": (
        "Fragile",
        lambda s: cx.cg(s.breaking(5).ggn(), s.v[:, 0], damping=0.1),
    ),
    "eigsh": ("Fragile", lambda s: cx.eigsh(s.breaking(1).hessian(), 2)),
    "hutchinson": ("Fragile", lambda s: cx.trace(s.breaking(3).hessian(), probes=20)),
    "xtrace": ("Fragile", lambda s: cx.trace(s.breaking(3).hessian(), "xtrace", probes=20)),
    "hutch++": ("Fragile", lambda s: cx.trace(s.breaking(3).hessian(), "hutch++", probes=20)),
    "diagonal, estimated": (
        "Fragile",
        lambda s: cx.diagonal(s.breaking(3).hessian(), probes=20),
    ),
    "spectral density": (
        "Fragile",
        lambda s: cx.spectral_density(s.breaking(5).hessian(), probes=2, steps=5),
    ),
    "critical point": ("Fragile", lambda s: cx.critical_point(s.breaking(3))),
    "a step": ("Fragile", lambda s: cx.gauss_newton_step(s.breaking(5))),
}


def heard(call, setting):
    """The error that this rank saw."""
    try:
        call(setting)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def a_rank_raises(rank, world, case):
    s = Setting(rank, world)
    seen = heard(RAISES[case][1], s)
    s.left = None
    return seen, s.risk.ggn() @ s.v


@pytest.mark.parametrize("case", RAISES)
def test_the_culprit_raises_its_own_error_and_the_others_name_it(ranks, case):
    found = ranks.run(a_rank_raises, case)
    culprit, name = culprit_of(ranks.world), RAISES[case][0]
    for rank, (seen, after) in enumerate(found):
        assert seen is not None, f"rank {rank} saw nothing"
        if rank == culprit:
            assert seen[0] == name
        else:
            assert seen[0] == "RuntimeError"
            assert seen[1].startswith(f"rank {culprit} raised {name}")
        assert_close(after, correct(ranks.world), "the next call")


def correct(world):
    posed = pose("batch_norm_1d", "ce_weight", samples=samples(CUT, world))
    return cx.GGNOperator(posed.model, posed.loss, union(posed)) @ posed.vectors()


def restored(change, call=lambda s: s.risk.ggn() @ s.v):
    """``call`` after a change of the model, which is undone."""

    def changed(s):
        before = {name: t.clone() for name, t in s.model.state_dict().items()}
        with torch.no_grad():
            change(s)
        try:
            return call(s)
        finally:
            with torch.no_grad():
                for name, t in s.model.state_dict().items():
                    t.copy_(before[name])
            s.model.eval()

    return changed


def unlike(s, **options):
    kept = dict(model=s.model, loss=s.loss, data=s.data, process_group=dist.group.WORLD)
    return cx.EmpiricalRisk(**kept | options)


def a_parameter(s):
    return list(s.model.parameters())[-1]


def autocast(s):
    with torch.autocast("cpu", torch.bfloat16, enabled=s.culprit):
        return s.risk.ggn() @ s.v


DIFFERS = {
    "the contents of v": (
        "contents of the vectors",
        lambda s: s.risk.ggn() @ (s.v + 1e-14 * s.culprit),
    ),
    "the number of columns": ("same call", lambda s: s.risk.ggn() @ s.here(twice(s.v), s.v)),
    "no column": ("same call", lambda s: s.risk.ggn() @ s.here(s.v[:, :0], s.v)),
    "the operator": ("same call", lambda s: s.here(s.risk.ggn(), s.risk.hessian()) @ s.v),
    "the method": (
        "same call",
        lambda s: s.here(s.risk.value, s.risk.gradient)(),
    ),
    "the seed of labels": ("seed=1", lambda s: s.risk.mc_fisher(seed=s.here(1, 0)) @ s.v),
    "what a datum is": (
        "same call",
        lambda s: s.risk.empirical_fisher(s.here("token", "sample")) @ s.v,
    ),
    "damping": (
        "damping=0.2",
        lambda s: s.risk.empirical_fisher().solve(s.v, damping=s.here(0.2, 0.1)),
    ),
    "k": ("k=2", lambda s: s.risk.empirical_fisher().eigh(s.here(2, 1))),
    "the seed of probes": ("seed=1", lambda s: cx.trace(s.risk.ggn(), seed=s.here(1, 0))),
    "k of eigsh": ("k=2", lambda s: cx.eigsh(s.risk.ggn(), s.here(2, 1))),
    "a tolerance": (
        "tol=0.1",
        lambda s: cx.cg(s.risk.ggn(), s.v[:, 0], damping=1.0, tol=s.here(0.1, 0.2)),
    ),
    "the right-hand side": (
        "contents of the vectors",
        lambda s: cx.cg(s.risk.ggn(), s.here(s.v[:, 0], s.v[:, 1]), damping=1.0),
    ),
    "a parameter": ("parameters", restored(lambda s: a_parameter(s).add_(1e-12 * s.culprit))),
    "a parameter, in the dark": (
        "parameters",
        restored(lambda s: a_parameter(s).data.neg_() if s.culprit else None),
    ),
    "a buffer": (
        "buffers",
        restored(lambda s: next(b for b in s.model.buffers() if b.ndim).add_(1e-12 * s.culprit)),
    ),
    "a mode": ("modes", restored(lambda s: s.here(s.model[-1].train, s.model[-1].eval)())),
    "autocast": ("autocast", autocast),
    "the selection": ("params", lambda s: unlike(s, params=s.here("*weight", None))),
    "the loss": ("loss", lambda s: unlike(s, loss=s.here(nn.CrossEntropyLoss(), s.loss))),
    "a number of the loss": (
        "loss",
        lambda s: unlike(s, loss=nn.CrossEntropyLoss(label_smoothing=s.here(0.1, 0.0))),
    ),
    "a weight of the loss": (
        "loss",
        lambda s: unlike(s, loss=nn.CrossEntropyLoss(s.loss.weight + 0.1 * s.culprit)),
    ),
}


def a_rank_differs(rank, world, case, cache):
    s = Setting(rank, world, cache)
    seen = heard(DIFFERS[case][1], s)
    return seen, s.risk.ggn() @ s.v


@pytest.mark.parametrize("cache", [False, "auto"])
@pytest.mark.parametrize("case", DIFFERS)
def test_a_difference_is_a_value_error_on_every_rank(ranks, case, cache):
    found = ranks.run(a_rank_differs, case, cache)
    for rank, (seen, after) in enumerate(found):
        assert seen is not None, f"rank {rank} saw nothing"
        assert seen[0] == "ValueError"
        assert DIFFERS[case][0] in seen[1]
        assert_close(after, correct(ranks.world), "the next call")


def nobody_has_a_sample(rank, world, data):
    posed = pose("mlp", "ce")

    def asked(_):
        return cx.EmpiricalRisk(
            posed.model, posed.loss, data, process_group=dist.group.WORLD
        ).value()

    return heard(asked, None)


@pytest.mark.parametrize("data", [[], [(torch.zeros(0, 4), torch.zeros(0))]])
def test_a_union_without_a_sample_is_refused_everywhere(ranks, data):
    for name, message in ranks.run(nobody_has_a_sample, data):
        assert name == "ValueError" and message.startswith("data: ")


def everything_ignored(rank, world):
    posed = pose("mlp", "ce", samples=2)
    data = (posed.x, torch.full_like(posed.y, -100))
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=dist.group.WORLD)
    return heard(lambda _: risk.ggn() @ posed.vectors(), None)


def test_a_union_of_ignored_positions_is_refused_everywhere(ranks):
    for name, message in ranks.run(everything_ignored):
        assert name == "ValueError" and "0/0" in message
