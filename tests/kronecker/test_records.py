"""Factors of recorded gradients: those of a pass through the network, without one."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import CASES
from problems import pose

import curvext as cx
from curvext.problem.kept import KeptBatches

pytestmark = pytest.mark.usefixtures("one_thread")

MAKES = ["kfac", "ekfac", "shampoo", "block_diagonal"]


@pytest.fixture
def passes(monkeypatch):
    """The batches that went through the network."""
    met = []
    backward = KeptBatches.backward_pass
    monkeypatch.setattr(
        KeptBatches, "backward_pass", lambda self, slot: met.append(slot) or backward(self, slot)
    )
    return met


def recorded(p, **options) -> cx.EmpiricalRisk:
    """A risk that keeps the records of its data."""
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3), **options)
    risk.empirical_fisher().matvec(torch.ones(risk.space.size, dtype=torch.float64))
    return risk


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.coupled])
def test_factors_of_records_are_those_of_a_pass(name):
    p = pose(name)
    fresh = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3), cache=False)
    for make in ("kfac", "block_diagonal"):
        found = getattr(recorded(p), make)(kind="empirical")
        expected = getattr(fresh, make)(kind="empirical")
        assert found.explain().split("\n", 1)[1] == expected.explain().split("\n", 1)[1]
        assert_close(found.to_dense(), expected.to_dense(), make)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", ["mlp", "tied", "reused", "conv2d_groups", "sliced_parameter"])
def test_no_batch_goes_through_the_network_that_is_recorded(name, make, passes):
    p = pose(name)
    risk = recorded(p)
    passes.clear()
    found = getattr(risk, make)(kind="empirical").to_dense()
    assert passes == []
    fresh = getattr(cx.EmpiricalRisk(p.model, p.loss, p.data), make)(kind="empirical")
    assert_close(found, fresh.to_dense())


@pytest.mark.parametrize("basis", ["kfac", "shampoo"])
@pytest.mark.parametrize("kind", ["mc", "empirical"])
def test_ekfac_records_in_its_first_pass_where_anything_is_kept(kind, basis, passes):
    p = pose("mlp")
    dense = []
    for cache, expected in ((True, 2), (False, 4)):
        passes.clear()
        risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3), cache=cache)
        dense.append(risk.ekfac(kind=kind, basis=basis, seed=3).to_dense())
        assert len(passes) == expected
    assert_close(dense[0], dense[1])


def test_records_of_other_labels_data_or_parameters_are_not_taken(passes):
    p = pose("mlp")
    x, y = p.x.clone(), p.y.clone()
    risk = cx.EmpiricalRisk(p.model, p.loss, (x, y))

    def dense(**options) -> torch.Tensor:
        passes.clear()
        found = risk.ekfac(**options).to_dense()
        assert len(passes) == 1, "no record of before serves"
        assert_close(found, cx.EmpiricalRisk(p.model, p.loss, (x, y)).ekfac(**options).to_dense())
        return found

    first = dense(kind="mc", seed=1)
    assert not torch.allclose(first, dense(kind="mc", seed=2))
    empirical = dense(kind="empirical")
    x *= 2
    moved = dense(kind="empirical")
    assert not torch.allclose(empirical, moved)
    with torch.no_grad():
        p.model[0].weight.data.mul_(1.5)
    assert not torch.allclose(moved, dense(kind="empirical"))


def test_a_drawn_label_follows_the_index_of_its_datum(passes):
    """The second batch is that of before, but its data come one place later."""
    p = pose("mlp")
    data = p.cut(2, 3)
    risk = cx.EmpiricalRisk(p.model, p.loss, data)
    risk.ekfac(seed=3).trace()
    data[0] = (p.x[:1], p.y[:1])
    later = risk.ekfac(seed=3).to_dense()
    assert_close(later, cx.EmpiricalRisk(p.model, p.loss, data).ekfac(seed=3).to_dense())


def test_gradients_that_are_too_large_to_be_recorded_come_by_passes(monkeypatch, passes):
    from curvext.problem import kept_records

    monkeypatch.setattr(kept_records, "_MATERIALISED_LIMIT", 0)
    p = pose("parametrised")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3))
    found = risk.ekfac(kind="empirical").to_dense()
    assert len(passes) > 2
    assert_close(
        found,
        cx.EmpiricalRisk(p.model, p.loss, p.data, cache=False).ekfac(kind="empirical").to_dense(),
    )
