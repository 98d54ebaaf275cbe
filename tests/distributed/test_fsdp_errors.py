"""Sharded parameters: an error on one rank is one on all, the model is left as found; and what there is no rule for."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from collectives import counted
from compare import assert_close
from fully_sharded import found, group, mesh_of, sharded
from problems import pose
from shards import samples, shard
from test_errors import RAISES, Setting, correct, culprit_of, heard
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import curvext as cx

pytestmark = pytest.mark.parametrize("ranks", [2], indirect=True)


class Sharded(Setting):
    """The setting of the errors on replicas, with sharded parameters."""

    def held(self, model, world):
        return sharded(model, mesh_of(world))


def dtensors(s):
    """A vector by name, whose first part lies elsewhere on the culprit."""
    named = dict(s.model.named_parameters())
    first = next(iter(named))
    named[first] = s.here(named[first].redistribute(placements=[Replicate()]), named[first])
    return named


def local(s):
    return s.risk.ggn().local(s.v)


#: what else one rank raises where vectors are sharded
MORE = {
    "the length of local entries": (
        "ValueError",
        lambda s: s.risk.ggn() @ s.here(local(s)[1:], local(s)),
    ),
    "nan in local entries": (
        "ValueError",
        lambda s: s.risk.ggn() @ s.here(local(s) * torch.nan, local(s)),
    ),
    "in the forward pass, by entries": ("Fragile", lambda s: s.breaking().hessian() @ local(s)),
    "a missing name": ("ValueError", lambda s: s.risk.ggn() @ s.here({}, dtensors(s))),
    "whole entries put together": ("ValueError", lambda s: s.risk.ggn().full(s.here(s.v[1:], s.v))),
    "kfac": ("Fragile", lambda s: s.breaking().kfac() @ s.v),
}
CASES = RAISES | MORE


def ranks_raise(rank, world):
    seen = {}
    for case, (_, call) in CASES.items():
        s = Sharded(rank, world)
        before = found(s.model)
        error = heard(call, s)
        s.left = None
        assert found(s.model) == before, case
        seen[case] = error, s.risk.ggn() @ s.v
        assert found(s.model) == before, case
    return seen


def test_an_error_on_one_rank_is_one_on_all_and_the_model_is_left_as_found(ranks):
    several, wanted = ranks.run(ranks_raise), correct(ranks.world)
    culprit = culprit_of(ranks.world)
    for case, (name, _) in CASES.items():
        for rank, seen in enumerate(several):
            error, after = seen[case]
            assert error is not None, f"{case}: rank {rank} saw nothing"
            if rank == culprit:
                assert error[0] == name, (case, error)
            else:
                assert error[0] == "RuntimeError", (case, error)
                assert error[1].startswith(f"rank {culprit} raised {name}"), (case, error)
            assert_close(after, wanted, case)


#: what ranks say of a vector that cannot be one
DIFFERS = {
    "whole on one": lambda s: s.risk.ggn() @ s.here(s.v, local(s)),
    "more columns on one": lambda s: s.risk.ggn() @ s.here(torch.cat([local(s)] * 2, 1), local(s)),
    "another operator on one": lambda s: s.here(s.risk.ggn(), s.risk.hessian()) @ local(s),
    "another method on one": lambda s: s.here(s.risk.ggn().full, s.risk.ggn().matmat)(local(s)),
}


def ranks_differ(rank, world):
    s = Sharded(rank, world)
    seen = {case: (heard(call, s), s.risk.ggn() @ s.v) for case, call in DIFFERS.items()}
    return seen


def test_a_difference_between_ranks_is_a_value_error_on_all(ranks):
    several, wanted = ranks.run(ranks_differ), correct(ranks.world)
    for case in DIFFERS:
        for seen in several:
            error, after = seen[case]
            assert error is not None and error[0] == "ValueError", (case, error)
            assert "do not make the same call" in error[1], (case, error)
            assert_close(after, wanted, case)


def whole(s, at):
    """A whole vector, which differs in one entry on the culprit."""
    return s.here(s.v[:, 0] + (torch.arange(len(s.v)) == at), s.v[:, 0])


def positive(s, at):
    return whole(s, at).abs() + 1


def by_name(s, form):
    """A vector by name, as DTensors or as whole tensors."""
    G = s.risk.ggn()
    return (
        G.local_vectors.named(positive(s, -1)) if form == "DTensors" else G.split(positive(s, -1))
    )


#: a whole vector that is not the same on all ranks, whichever rank's entries differ
CONTENTS = {
    "local": lambda s, at: s.risk.ggn().local(whole(s, at)),
    "b": lambda s, at: cx.cg(s.risk.ggn(), whole(s, at), damping=1.0),
    "b by name": lambda s, at: cx.cg(
        s.risk.ggn(), s.risk.ggn().split(whole(s, at).contiguous()), damping=1.0
    ),
    "x0": lambda s, at: cx.cg(s.risk.ggn(), s.v[:, 0], damping=1.0, x0=whole(s, at)),
    "preconditioner": lambda s, at: cx.cg(
        s.risk.ggn(), s.v[:, 0], damping=1.0, preconditioner=positive(s, at)
    ),
    "v0": lambda s, at: cx.eigsh(s.risk.ggn(), 1, v0=whole(s, at), ncv=4),
}

#: named vectors that are in another form on one rank
FORMS = {
    "b in another form": lambda s: cx.cg(
        s.risk.ggn(), by_name(s, s.here("DTensors", "whole")), damping=1.0
    ),
    "a preconditioner in another form": lambda s: cx.cg(
        s.risk.ggn(),
        s.v[:, 0],
        damping=1.0,
        preconditioner=by_name(s, s.here("DTensors", "whole")),
    ),
    "local in another form": lambda s: s.risk.ggn().local(by_name(s, s.here("DTensors", "whole"))),
}


def contents_differ(rank, world):
    s = Sharded(rank, world)
    seen = {}
    for case, call in CONTENTS.items():
        for at in (0, len(s.v) - 1):
            seen[case, at] = heard(lambda s, c=call, i=at: c(s, i), s)
        assert heard(lambda s, c=call: c(s, -1), s) is None, case  # the same everywhere
    forms = {case: heard(call, s) for case, call in FORMS.items()}
    return seen, forms, s.risk.ggn() @ s.v


def test_whole_vectors_that_differ_between_ranks_are_refused_on_all(ranks):
    several, wanted = ranks.run(contents_differ), correct(ranks.world)
    for seen, forms, after in several:
        for case, error in seen.items():
            assert error is not None and error[0] == "ValueError", (case, error)
            assert "the contents of the vectors are not the same" in error[1], (case, error)
        for case, error in forms.items():
            assert error is not None and error[0] == "ValueError", (case, error)
            assert "do not make the same call" in error[1], (case, error)
        assert_close(after, wanted)


def lengths(rank, world):
    s = Sharded(rank, world)
    G, mine = s.risk.ggn(), local(s)
    seen = {}
    for case, (a, b) in {
        "too short": (mine[1:], mine[1:]),
        "of different lengths": (mine, mine[1:]),
        "in between": (s.v[1:], s.v[1:]),
        "one of each": (mine, s.v),
    }.items():
        seen[case] = heard(lambda s, a=a, b=b: G.inner(a, b), s)
    assert_close(G.inner(mine, mine), s.v.T @ s.v)
    assert_close(G.inner(s.v, s.v), s.v.T @ s.v)
    there = G.local_vectors.entries(torch.device("cpu"))
    assert G.local_vectors.entries(torch.device("meta")).device.type == "meta"
    assert torch.equal(G.local_vectors.entries(torch.device("cpu")), there)
    return seen


def test_inner_products_of_neither_local_nor_whole_vectors_are_refused(ranks):
    for seen in ranks.run(lengths):
        for case, error in seen.items():
            assert error is not None and error[0] == "ValueError", (case, error)
            assert error[1].startswith("inner: expected vectors of the"), (case, error)


# ---------------------------------------------------------------------- what there is no rule for


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def tied():
    model = layers()
    model[2] = nn.Linear(4, 6).double()
    model[2].weight = model[0].weight
    return nn.Sequential(model[0], nn.Linear(6, 4).double(), model[2])


def by_columns(world):
    return parallelize_module(layers(), mesh_of(world), {"0": ColwiseParallel()})


def by_hand(world):
    model = layers()
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.data, mesh_of(world)))
    return model


def two_meshes(world):
    model, other = layers(), init_device_mesh("cpu", (1, world), mesh_dim_names=("a", "b"))
    fully_shard(model[0], mesh=other["b"])
    fully_shard(model[2], mesh=init_device_mesh("cpu", (1, world), mesh_dim_names=("c", "d")))
    return model


def tensor_and_data(world):
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(layers(), mesh["tensor"], {"0": ColwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


class Stops(nn.Linear):
    """A layer that raises."""

    def forward(self, x):
        raise RuntimeError("enough")


def half_way(world):
    """As a forward pass that raised left it: the outermost parameters are whole."""
    model = layers()
    model[2] = Stops(6, 4).double()
    sharded(model, mesh_of(world), blocks=False)
    with contextlib.suppress(RuntimeError):
        model(torch.ones(2, 4).double())
    return model


REFUSED = {
    "no process group": (lambda w: sharded(layers(), mesh_of(w)), None, "process_group=None"),
    "tensor parallelism": (by_columns, "world", "'0.weight' is sharded"),
    "a DTensor by hand": (by_hand, "world", "'0.weight' is sharded"),
    "tensor parallelism in shards": (tensor_and_data, "world", "'0.weight' is sharded"),
    "a bfloat16 policy": (
        lambda w: sharded(
            layers(), mesh_of(w), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        ),
        "world",
        "param_dtype=torch.bfloat16",
    ),
    "outputs in float32": (
        lambda w: sharded(
            layers(), mesh_of(w), mp_policy=MixedPrecisionPolicy(output_dtype=torch.float32)
        ),
        "world",
        "output_dtype=torch.float32",
    ),
    "a rank alone": (lambda w: sharded(layers(), mesh_of(w)), "alone", "has the ranks [0]"),
    "the older FSDP": (
        lambda w: FullyShardedDataParallel(layers(), device_id=torch.device("cpu")),
        "world",
        "FullyShardedDataParallel",
    ),
    "in the middle of a forward pass": (
        half_way,
        "world",
        "reset_iter_state()",
    ),
    "weights tied between groups": (
        lambda w: sharded(tied(), mesh_of(w)),
        "world",
        "is tied to a parameter that another call of fully_shard took",
    ),
    "two meshes": (two_meshes, "world", "several meshes"),
}


def refused(rank, world):
    alone = [dist.new_group([r]) for r in range(world)][rank]
    groups = {"world": group(), "alone": alone, None: None}
    seen = {}
    x, y = torch.ones(2, 4).double(), torch.zeros(2, dtype=torch.int64)
    for case, (make, of, _) in REFUSED.items():
        model = make(world)
        before = [(id(p), type(p).__name__) for p in model.parameters()]
        seen[case] = heard(
            lambda _, m=model, g=groups[of]: cx.GGNOperator(
                m, nn.CrossEntropyLoss(), (x, y), process_group=g
            ),
            None,
        )
        assert before == [(id(p), type(p).__name__) for p in model.parameters()]
    return seen


def test_what_there_is_no_rule_for_is_refused_by_name(ranks):
    for rank, seen in enumerate(ranks.run(refused)):
        for case, (_, _, text) in REFUSED.items():
            assert seen[case] is not None, case
            name, message = seen[case]
            assert name == "ValueError", (case, message)
            if not (case == "a rank alone" and rank):
                assert text in message, (case, message)


# ---------------------------------------------------------------------- what is sent, and said


def sent(rank, world):
    posed = pose("mlp", "ce", samples=samples("uneven", world))
    sharded(posed.model, mesh_of(world))
    data = shard(posed, "uneven", rank, world)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group())
    H, V = risk.hessian(), posed.vectors()
    mine = H.local(V)
    H @ V
    return {
        "a product": counted(lambda: H @ V),
        "by entries": counted(lambda: H @ mine),
        "an inner product": counted(lambda: H.inner(mine, mine)),
        "a local vector": counted(lambda: H.local(V)),
        "explained": risk.explain(),
    }


def test_what_is_sent_for_each_product_does_not_depend_on_layers_batches_and_columns(ranks):
    for seen in ranks.run(sent):
        # words before, parameters, words after, and the sum
        assert seen["a product"] == {"allgather_": 3, "allreduce_": 1}
        assert seen["by entries"] == {"allgather_": 5, "allreduce_": 1}
        assert seen["an inner product"] == {"allreduce_": 1}
        assert seen["a local vector"] == {"allgather_": 1}
        assert (
            "sharded over 2 ranks (fully_shard), and whole on each rank for the duration"
            in (seen["explained"])
        )
        assert "sent before each call" in seen["explained"]
