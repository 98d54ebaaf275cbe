"""Results: short reprs, pictures, and intervals that hold for few probes too."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import curvext as cx
from curvext.student import two_sided_quantile

MATRIX = torch.diag(torch.arange(1.0, 41.0).double())


class Matrix:
    """A matrix as an operator of a user's."""

    def __init__(self, matrix: torch.Tensor):
        self.matrix, self.shape = matrix, matrix.shape
        self.dtype, self.device = matrix.dtype, matrix.device

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.matrix @ v


def risk() -> cx.EmpiricalRisk:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data = (torch.randn(12, 3).double(), torch.randint(2, (12,)))
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def every_result() -> list[object]:
    A, at = Matrix(MATRIX), risk()
    compared = cx.compare(at, densities=True)
    return [
        cx.eigsh(A, 3),
        cx.cg(A, torch.ones(40).double()),
        cx.spectral_density(A, 2, 10),
        cx.trace(A, probes=4),
        cx.diagonal(A, probes=4),
        cx.condition_number(A),
        cx.critical_point(at),
        cx.newton_step(at, 1.0),
        compared,
        compared.equalities[0],
    ]


def test_a_repr_is_a_line_that_names_the_class_and_prints_no_long_tensor():
    for result in every_result():
        shown = repr(result)
        assert shown.startswith(f"{type(result).__name__}(") and shown.endswith(")")
        assert len(shown) < 700 and "\n" not in shown and "tensor(" not in shown
    assert repr(cx.trace(Matrix(MATRIX), probes=40)) == (
        "Estimate(value=820, standard_error=0, products=40, degrees_of_freedom=inf)"
    )
    assert "vectors=<float64 [40, 3]>" in repr(cx.eigsh(Matrix(MATRIX), 3))


# ---------------------------------------------------------------------- pictures


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_eigenvalues_are_drawn_with_their_residuals_from_the_largest_down(plt):
    axes = cx.eigsh(Matrix(MATRIX), 3).plot()
    (points, *_) = axes.lines
    assert points.get_ydata().round(6).tolist() == [40.0, 39.0, 38.0]


def test_a_density_is_drawn_on_the_axes_given(plt):
    density = cx.spectral_density(Matrix(MATRIX), 3, 10)
    given = plt.subplots()[1]
    assert density.plot(given) is given
    (line,) = given.lines
    assert line.get_xdata().tolist() == density.grid.tolist()
    assert given.get_yscale() == "log"
    given.figure.canvas.draw()


def test_shares_of_a_diagonal_add_to_one(plt):
    named = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([4.0])}
    assert [bar.get_width() for bar in cx.plot_shares(named).patches] == [0.5, 0.5]


@pytest.mark.parametrize(
    "named, error, message",
    [
        (torch.ones(3), TypeError, "plot_shares: named: expected {name: tensor}, got Tensor"),
        ({"a": 3.0}, TypeError, "plot_shares: named: 'a': expected a tensor, got float"),
        ({"a": torch.zeros(3)}, ValueError, "magnitudes add to 0"),
        ({}, ValueError, "magnitudes add to 0"),
    ],
)
def test_what_has_no_shares_is_refused(named, error, message):
    with pytest.raises(error, match=message):
        cx.plot_shares(named)


def test_without_matplotlib_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = (
        "EigenResult.plot: matplotlib is missing; install it with: python -m pip install matplotlib"
    )
    with pytest.raises(ImportError, match=message):
        cx.eigsh(Matrix(MATRIX), 3).plot()


# ---------------------------------------------------------------------- intervals


def test_quantiles_are_those_of_students_distribution():
    student = pytest.importorskip("scipy.stats").t
    for level in (0.5, 0.9, 0.95, 0.999):
        for degrees in (1, 2, 3, 4, 9, 10, 59):
            found = two_sided_quantile(level, degrees)
            assert found == pytest.approx(student.ppf((1 + level) / 2, degrees), rel=1e-9)
    assert two_sided_quantile(0.95, float("inf")) == pytest.approx(1.959963984540054)


@pytest.mark.parametrize("method, probes", [("hutchinson", 2), ("hutchinson", 4), ("hutch++", 6)])
def test_intervals_cover_the_trace_as_often_as_they_say_with_few_probes(method, probes):
    torch.manual_seed(3)
    root = torch.randn(40, 40).double()
    A = Matrix(root @ root.T)
    truth, seeds, inside, within_two = float(A.matrix.trace()), 400, 0, 0
    for seed in range(seeds):
        estimate = cx.trace(A, method, probes=probes, seed=seed)
        low, high = estimate.interval(0.9)
        inside += bool(low <= truth <= high)
        within_two += abs(float(estimate.value) - truth) <= 1.645 * float(estimate.standard_error)
    # 90 % of 400, give or take four standard deviations of a binomial
    assert abs(inside / seeds - 0.9) < 4 * (0.9 * 0.1 / seeds) ** 0.5
    assert within_two < inside  # which is what the normal quantile misses


def test_one_probe_says_nothing_and_an_exact_value_everything():
    alone = cx.diagonal(Matrix(MATRIX + 1), probes=1)
    low, high = alone.interval()
    assert bool((low == -torch.inf).all() and (high == torch.inf).all())
    low, high = cx.trace(Matrix(MATRIX), probes=40).interval(0.999)
    assert float(low) == float(high) == 820
    with pytest.raises(ValueError, match="interval: level: expected a number between 0 and 1"):
        alone.interval(95)
