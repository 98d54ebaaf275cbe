"""The second opinion on the data of several processes: the same table on all ranks, and errors on one seen by all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from answers import risk_of
from fully_sharded import mesh_of, sharded
from problems import pose
from shards import samples, shard, union

from curvext.check import Plain
from curvext.gradients.outer_product import OuterGradient


def posed_for(world, network="mlp", loss="ce_weight_ignore_smooth", cut="uneven"):
    return pose(network, loss, samples=samples(cut, world))


def risk_of_a_rank(rank, world, *which):
    posed = posed_for(world, *which)
    cut = which[2] if len(which) == 3 else "uneven"
    return risk_of(posed, shard(posed, cut, rank, world), process_group=dist.group.WORLD)


def checked(rank, world, *which):
    return risk_of_a_rank(rank, world, *which).check()


@pytest.mark.parametrize(
    "which",
    [
        ("mlp", "ce_weight_ignore_smooth", "uneven"),
        ("mlp", "mse", "nothing on the first"),
        ("cnn", "ce_minus_100", "nothing on the last"),
        ("encoder_layer", "ce", "empty batches"),
    ],
    ids=str,
)
def test_all_ranks_find_what_one_process_finds_on_the_union(ranks, which):
    posed = posed_for(ranks.world, *which)
    alone = risk_of(posed, union(posed)).check()
    found = ranks.run(checked, *which)
    assert all(str(other) == str(found[0]) for other in found) and found[0].ok
    for row, expected in zip(found[0], alone, strict=True):
        assert (row.quantity, row.verdict) == (expected.quantity, expected.verdict)
    assert sum(row.verdict == "agrees" for row in found[0]) >= 10


def plain_quantities(rank, world):
    risk = risk_of_a_rank(rank, world)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plain, "__init__", remembering(Plain.__init__, seen))
        assert risk.check().ok
    (plain,) = seen
    return plain.samples, plain.value(), plain.gradient()


def remembering(init, seen):
    def made(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append(self)

    return made


def test_plain_pytorch_sums_over_all_ranks(ranks):
    posed = posed_for(ranks.world)
    posed.model.zero_grad()
    value = posed.loss(posed.model(posed.x), posed.y)
    gradient = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(value, list(posed.model.parameters()))]
    )
    for count, found, slope in ranks.run(plain_quantities):
        assert count == len(posed.x)
        assert abs(float(found) - value.item()) < 1e-12
        assert torch.allclose(slope[:, 0], gradient, atol=1e-13)


def with_a_wrong_square(rank, world, broken):
    risk = risk_of_a_rank(rank, world)
    right = OuterGradient.square

    def wrong(self, *args, **kwargs):
        if broken:
            raise KeyError("planted")
        return 1.01 * right(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if rank == world - 1:
            patch.setattr(OuterGradient, "square", wrong)
        found = risk.check()
    return found, risk.check().ok


@pytest.mark.parametrize("broken", [False, True], ids=["wrong", "raises"])
def test_a_fault_of_one_rank_is_in_the_table_of_all(ranks, broken):
    found = ranks.run(with_a_wrong_square, broken)
    for table, afterwards in found:
        assert not table.ok and afterwards
        assert str(table) == str(found[0][0])
        assert table["diag F_emp"].verdict == ("failed" if broken else "differs")
        assert table["H v"].verdict == "agrees"
    if broken:
        assert "KeyError: 'planted'" in found[0][0]["diag F_emp"].words


def with_plain_pytorch_failing(rank, world):
    risk = risk_of_a_rank(rank, world)

    def refused(self, V):
        raise RuntimeError("no second derivative")

    with pytest.MonkeyPatch.context() as patch:
        if rank == world - 1:
            patch.setattr("curvext.check.point.Point.hessian_product", lambda at, v: refused(at, v))
        return risk.check()


def test_what_plain_pytorch_cannot_compute_on_one_rank_is_unchecked_on_all(ranks):
    found = ranks.run(with_plain_pytorch_failing)
    for table in found:
        assert str(table) == str(found[0]) and table.ok
        assert table["H v"].verdict == "unchecked"
        assert table["G v"].verdict == "agrees"


def with_other_arguments(rank, world):
    risk = risk_of_a_rank(rank, world)
    try:
        risk.check(seed=rank)
    except ValueError as error:
        return str(error), risk.check().ok
    return None


def test_ranks_that_ask_for_other_samples_are_told(ranks):
    for message, afterwards in ranks.run(with_other_arguments):
        assert "check(" in message and "seed=1" in message and afterwards


def with_a_bad_argument(rank, world):
    risk = risk_of_a_rank(rank, world)
    try:
        risk.check(samples=0 if rank == world - 1 else 8)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error), risk.check(vectors=1).ok
    return None


def test_a_bad_argument_of_one_rank_is_an_error_of_all(ranks):
    *others, (kind, message, afterwards) = ranks.run(with_a_bad_argument)
    assert kind == "ValueError" and "check: samples" in message and afterwards
    for kind, message, afterwards in others:
        assert kind == "RuntimeError" and f"rank {ranks.world - 1} raised" in message and afterwards


def of_shards(rank, world):
    posed = posed_for(world)
    sharded(posed.model, mesh_of(world))
    return risk_of(
        posed, shard(posed, "uneven", rank, world), process_group=dist.group.WORLD
    ).check()


def test_a_model_under_fully_shard_is_checked_too(ranks):
    found = ranks.run(of_shards)
    assert all(str(table) == str(found[0]) for table in found) and found[0].ok
    assert found[0]["diag G"].verdict == found[0]["F_emp v"].verdict == "agrees"
