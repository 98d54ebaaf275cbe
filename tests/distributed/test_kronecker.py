"""Factors of the data of several processes are those of their union, on every rank, with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from shards import samples, shard, union
from torch import nn

import curvext as cx
from curvext.kronecker import scores

DAMPING = 0.1
CHUNK = scores._CHUNK


def posed_for(network, loss, cut, world):
    return pose(network, loss, samples=samples(cut, world))


def answers(posed, data, kind, group=None, **options):
    """What the operators answer."""
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group, **options)
    v = posed.vectors()[:, 0]
    K, E = risk.kfac(kind=kind, seed=3), risk.ekfac(kind=kind, seed=3)
    found = {
        "K": K.to_dense(),
        "K v": K @ v,
        "K by reduce": risk.kfac(kind=kind, seed=3, approx="reduce").to_dense(),
        "K with all positions": risk.kfac(kind=kind, seed=3, positions="all").to_dense(),
        "solve": K.solve(v, DAMPING),
        "inverse": K.inverse(DAMPING) @ v,
        "by sides": K.inverse(DAMPING, method="pi") @ v,
        "log det": K.logdet(DAMPING),
        "values": K.eigenvalues(),
        "E": E.to_dense(),
        "tr E": E.trace(),
        "E by Shampoo": risk.ekfac(kind=kind, seed=3, basis="shampoo").to_dense(),
        "S": risk.shampoo(kind=kind, seed=3).to_dense(),
        "S by roots": risk.shampoo(kind=kind, seed=3, form="root").to_dense(),
        "D": risk.block_diagonal(kind=kind, seed=3, blocks="module").to_dense(),
        "diag D": risk.block_diagonal(kind=kind, seed=3, max_dim=1).diagonal(),
        "long sides": risk.kfac(kind=kind, seed=3, max_dim=4).to_dense(),
    }
    return found | {"H": risk.block_diagonal(kind="hessian").to_dense()}


GRID = [
    ("mlp", "ce_weight_ignore_smooth", "uneven", "mc", {}),
    ("mlp", "mse", "nothing on the first", "exact", {"cache": False}),
    ("conv2d_groups", "ce", "nothing on the last", "empirical", {}),
    ("tied", "ce", "empty batches", "mc", {"cache": False}),
    ("embedding", "ce_minus_100", "uneven", "empirical", {}),
]


def answers_of_a_rank(rank, world, network, loss, cut, kind, options):
    posed = posed_for(network, loss, cut, world)
    return answers(posed, shard(posed, cut, rank, world), kind, dist.group.WORLD, **options)


@pytest.mark.parametrize("network, loss, cut, kind, options", GRID)
def test_factors_are_those_of_the_union_on_every_rank(ranks, network, loss, cut, kind, options):
    posed = posed_for(network, loss, cut, ranks.world)
    expected = answers(posed, union(posed), kind)
    found = ranks.run(answers_of_a_rank, network, loss, cut, kind, options)
    for name, value in expected.items():
        assert_close(found[0][name], value, name)
        for other in found[1:]:
            assert torch.equal(other[name], found[0][name]), f"{name}: bits differ between ranks"


class Branching(nn.Module):
    """Where a batch has three samples a bias is used twice, another never, and a matrix as a table of rows too."""

    def __init__(self, several):
        super().__init__()
        self.several = several
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if len(x) == 3:
            if self.several:
                h = h + self.a.bias + self.b.weight[0]
            return self.b(torch.tanh(nn.functional.linear(h, self.c.weight)))
        return self.b(torch.tanh(self.c(h)))


def branching(world, several):
    torch.manual_seed(0)
    sizes = ([2, 2], [3], [4])[:world]
    each = [size for part in sizes for size in part]
    x, y = torch.randn(sum(each), 4, dtype=torch.float64), torch.randint(3, (sum(each),))
    parts = list(zip(x.split(each), y.split(each), strict=True))
    shards = [[parts.pop(0) for _ in size] for size in sizes]
    return Branching(several).double(), shards


def of_branches(rank, world, turned, several):
    model, shards = branching(world, several)
    data = shards[(rank + turned) % world]
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, process_group=dist.group.WORLD)
    K = risk.kfac(kind="empirical")
    return K.to_dense(), K.explain(), risk.ekfac(kind="empirical").to_dense()


@pytest.mark.parametrize("turned, several", [(0, True), (1, True), (0, False)])
def test_what_one_rank_alone_finds_to_be_no_factor_is_none_on_any(ranks, turned, several):
    model, shards = branching(ranks.world, several)
    data = [batch for part in shards for batch in part]
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    K = risk.kfac(kind="empirical")
    exact = ("a.bias", "b.weight", "c.bias") if several else ("c.bias",)
    assert all(K.blocks[name].structure == "dense" for name in exact)
    assert K.blocks["c.weight"].structure == "kronecker"
    for dense, explained, corrected in ranks.run(of_branches, turned, several):
        assert_close(dense, K.to_dense())
        assert_close(corrected, risk.ekfac(kind="empirical").to_dense())
        assert explained == K.explain()


def of_steps(rank, world):
    posed = posed_for("mlp", "ce", "uneven", world)
    risk = cx.EmpiricalRisk(
        posed.model, posed.loss, shard(posed, "uneven", rank, world), process_group=dist.group.WORLD
    )
    K = risk.kfac()
    before = K.to_dense()
    with torch.no_grad():
        posed.model[0].weight *= 1.5
    after = K.to_dense()
    errors = []
    for call in (
        lambda: K.solve(posed.vectors()[:, 0], 0.1 + rank),
        lambda: K @ posed.vectors()[: 1 if rank else None, 0],
        lambda: risk.kfac(approx="reduce" if rank else "expand").trace(),
        lambda: risk.kfac(approx="?" if rank == 1 else "expand").trace(),
    ):
        try:
            errors.append(call())
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
    return before, after, errors, K.trace()


def test_what_differs_between_ranks_is_an_error_on_all_and_the_next_call_works(ranks):
    posed = posed_for("mlp", "ce", "uneven", ranks.world)
    before = cx.EmpiricalRisk(posed.model, posed.loss, union(posed)).kfac().to_dense()
    with torch.no_grad():
        posed.model[0].weight *= 1.5
    after = cx.EmpiricalRisk(posed.model, posed.loss, union(posed)).kfac().to_dense()
    for rank, (was, now, errors, trace) in enumerate(ranks.run(of_steps)):
        assert_close(was, before)
        assert_close(now, after)
        assert_close(trace, after.trace())
        solve, shape, options, unknown = errors
        assert solve[0] == "ValueError" and "damping=0.1" in solve[1] and "damping=1.1" in solve[1]
        assert shape[0] == ("ValueError" if rank else "RuntimeError")
        assert options[0] == "ValueError" and "do not make the same call" in options[1]
        assert unknown[0] == ("ValueError" if rank == 1 else "RuntimeError")


def scores_of_a_rank(rank, world, step):
    posed = posed_for("mlp", "ce_weight_ignore_smooth", "uneven", world)
    asked = posed_for("mlp", "ce_weight_ignore_smooth", "nothing on the first", world)
    query = shard(asked, "nothing on the first", rank, world)
    risk = cx.EmpiricalRisk(
        posed.model,
        posed.loss,
        shard(posed, "uneven", rank, world),
        process_group=dist.group.WORLD,
    )
    K = risk.kfac(kind="empirical")
    scores._CHUNK = step * K.shape[0]
    alone = cx.EmpiricalRisk(posed.model, posed.loss, union(asked))
    try:
        return K.scores(query, DAMPING), K.scores(risk, DAMPING), error_of(K, alone)
    finally:
        scores._CHUNK = CHUNK


def error_of(K, query):
    with pytest.raises(ValueError) as refusal:
        K.scores(query, DAMPING)
    return str(refusal.value)


@pytest.mark.parametrize(
    "step", [2, 1000]
)  # queries at a time: several chunks across ranks, and one
def test_scores_are_those_of_the_union_on_every_rank(ranks, step):
    posed = posed_for("mlp", "ce_weight_ignore_smooth", "uneven", ranks.world)
    asked = posed_for("mlp", "ce_weight_ignore_smooth", "nothing on the first", ranks.world)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, union(posed))
    K = risk.kfac(kind="empirical")
    expected = K.scores(union(asked), DAMPING), K.scores(risk, DAMPING)
    found = ranks.run(scores_of_a_rank, step)
    for *answers, refusal in found:
        for got, same, value in zip(answers, found[0], expected, strict=False):
            assert_close(got, value)
            assert torch.equal(got, same)
        assert "of different process groups" in refusal
