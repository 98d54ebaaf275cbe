"""Second moments of patches by distinct shifts, against patches that are unfolded."""

from __future__ import annotations

import itertools

import pytest
import torch
from compare import assert_close
from torch import nn

import curvext as cx
from curvext.kronecker import shifts
from curvext.kronecker.shifts import Geometry, patch_moment

GEOMETRIES = [
    *itertools.product([(7,)], [(1,), (3,), (4,), (5,)], [(0,), (1,), (2,), (6,)], [(1,), (2,)]),
    *itertools.product(
        [(6, 7), (5, 5)], [(3, 3), (2, 3), (4, 1)], [(0, 0), (1, 1), (2, 0), (3, 4)], [(1, 1), (1, 2)]
    ),
    *itertools.product([(4, 5, 4)], [(2, 3, 2)], [(0, 1, 0), (1, 1, 1)], [(1, 1, 1), (1, 2, 1)]),
]  # fmt: skip


def unfolded(x, where, geometry):
    """Σ a aᵀ and Σ a, patch by patch."""
    padded = nn.functional.pad(x, [p for size in reversed(geometry.padding) for p in (size, size)])
    rows = []
    for b, *at in where.nonzero().tolist():
        spans = [
            slice(s, s + d * (k - 1) + 1, d)
            for s, d, k in zip(at, geometry.dilation, geometry.window, strict=True)
        ]
        rows.append(padded[(b, slice(None), *spans)].flatten())
    return torch.stack(rows).T @ torch.stack(rows), torch.stack(rows).sum(0)


@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize("image, window, padding, dilation", GEOMETRIES)
def test_sums_by_shifts_are_those_of_the_patches(
    image, window, padding, dilation, missing, monkeypatch
):
    monkeypatch.setattr(shifts, "_LOSS", float("inf"))  # in float64 every border is far from it
    monkeypatch.setattr(shifts, "_CHUNK", 500)  # several pieces of images
    torch.manual_seed(0)
    geometry = Geometry(image, window, (1,) * len(image), padding, dilation)
    positions = [s + 2 * p - g for s, p, g in zip(image, padding, geometry.gaps, strict=True)]
    if min(positions) < 1 or any(b > s for b, s in zip(geometry.borders, image, strict=True)):
        assert not geometry.pays(1000)
        return
    x = torch.randn(3, 2, *image, dtype=torch.float64)
    where = torch.rand(3, *positions) >= missing
    found = patch_moment(x, where, geometry)
    assert found is not None
    matrix, sums = unfolded(x, where, geometry)
    assert torch.equal(found[0], found[0].T), "symmetric to the last bit"
    assert_close(found[0], matrix)
    assert_close(found[1], sums)


GEOMETRY = Geometry((8, 8), (3, 3), (1, 1), (1, 1), (1, 1))


def test_there_is_no_answer_where_most_of_it_would_be_subtracted():
    where = torch.ones(1, 8, 8, dtype=torch.bool)
    x = torch.zeros(1, 2, 8, 8)
    x[:, :, 3, 3] = 1
    assert patch_moment(x, where, GEOMETRY) is not None
    where[:, 2:5, 2:5] = False  # of the nine positions that see the one pixel
    where[:, 4, 4] = True  # but for one
    assert patch_moment(x, where, GEOMETRY) is None


def test_there_is_no_answer_where_many_positions_do_not_count():
    where = torch.rand(1, 8, 8) > 0.5
    assert patch_moment(torch.randn(1, 2, 8, 8), where, GEOMETRY) is None


def test_large_values_at_positions_that_do_not_count_leave_no_rounding(monkeypatch):
    """As padding of sequences may hold anything."""
    monkeypatch.setattr(shifts, "_CHANNELS", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2))
    x, y = torch.randn(4, 2, 40), torch.randint(2, (4,))
    with torch.no_grad():
        model[3].weight.view(2, 3, 40)[:, :, 34:] = 0  # no gradient comes to the last positions
    x[:, :, 36:] *= 1e5
    found = cx.KFACOperator(model, nn.CrossEntropyLoss(), (x, y), kind="empirical").factors
    exact = cx.KFACOperator(
        model.double(), nn.CrossEntropyLoss(), (x.double(), y), kind="empirical"
    ).factors
    error = (found["0.weight"].a - exact["0.weight"].a).norm() / exact["0.weight"].a.norm()
    assert error < 1e-5


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("groups", [1, 2])
def test_factors_by_shifts_are_those_by_patches(groups, approx, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 40, 3, padding=1, groups=groups)
    model = nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(640, 3))
    data = (torch.randn(5, 4, 8, 8, dtype=torch.float64), torch.randint(3, (5,)))
    risk = cx.EmpiricalRisk(model.double(), nn.CrossEntropyLoss(), data, cache=False)
    K = risk.kfac(kind="empirical", approx=approx)
    by_patches = K.factors["0.weight"].a
    calls = []
    real = shifts.patch_moment
    monkeypatch.setattr(shifts, "_CHANNELS", 1)
    monkeypatch.setattr(
        shifts, "patch_moment", lambda *args: calls.append(real(*args)) or calls[-1]
    )
    assert_close(K.factors["0.weight"].a, by_patches)
    assert [call is not None for call in calls] == [True] * (groups if approx == "expand" else 0)


def test_shifts_pay_for_many_channels_and_no_strides():
    assert GEOMETRY.pays(64)
    assert not GEOMETRY.pays(3)
    assert not Geometry((8, 8), (3, 3), (2, 2), (1, 1), (1, 1)).pays(64)
    assert not Geometry((8, 8), (1, 1), (1, 1), (0, 0), (1, 1)).pays(64)
    assert len(GEOMETRY.shifts) == 13
