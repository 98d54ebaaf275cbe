"""The kind of a point: on quadratics of prescribed spectrum, and on networks at points known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_close
from matrices import Matrix, vector, with_spectrum
from torch import nn

import curvext as cx


class Quadratic:
    """A risk with a given gradient and Hessian."""

    def __init__(self, values, gradient=0.0, dtype=torch.float64, device="cpu"):
        self.values = torch.as_tensor(values, dtype=torch.float64)
        self.matrix = with_spectrum(self.values, dtype, device)
        size = len(self.values)
        self._gradient = gradient * torch.ones(size, dtype=dtype, device=device) / size**0.5

    def gradient(self):
        return self._gradient

    def hessian(self):
        return self.matrix


UP = torch.linspace(0.5, 3, 90, dtype=torch.float64)
KINDS = {
    "minimum": UP,
    "maximum": -UP,
    "saddle": torch.cat([UP, -UP]),
    "degenerate": torch.cat([torch.zeros(20), UP]),
}
DEGENERATE_DOWN = torch.cat([-UP, torch.zeros(1)])
FLAT_SADDLE = torch.cat([UP, torch.zeros(60), torch.tensor([-0.3])])
#: formed, and by Lanczos
LIMITS = [1000, 0]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("verdict", KINDS)
def test_the_signs_of_the_eigenvalues_decide(verdict, dtype, limit, device):
    risk = Quadratic(KINDS[verdict], dtype=dtype, device=device)
    point = cx.critical_point(risk, dense_limit=limit)
    assert point.verdict == verdict
    assert point.exact == (limit > 0) and point.converged
    tol = 1e-7 if dtype is torch.float64 else 1e-4
    ends = torch.tensor([point.smallest, point.largest]).double()
    assert_close(ends, torch.stack([risk.values.min(), risk.values.max()]), tol=tol)
    assert point.products == risk.matrix.products


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "values, verdict", [(DEGENERATE_DOWN, "degenerate"), (FLAT_SADDLE, "saddle"), (torch.zeros(70), "degenerate")]
)  # fmt: skip
def test_a_zero_eigenvalue_leaves_a_saddle_a_saddle_and_decides_nothing_else(
    values, verdict, limit
):
    assert cx.critical_point(Quadratic(values), dense_limit=limit).verdict == verdict


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("value, verdict", [(2.0, "minimum"), (-2.0, "maximum"), (0.0, "degenerate")])  # fmt: skip
def test_a_single_parameter(value, verdict, limit):
    point = cx.critical_point(Quadratic([value]), dense_limit=limit)
    assert point.verdict == verdict and point.smallest == point.largest == value
    assert point.condition_number == (1 if value else math.inf)


@pytest.mark.parametrize("limit", LIMITS)
def test_with_a_gradient_no_eigenvalue_says_minimum(limit):
    point = cx.critical_point(Quadratic(UP, gradient=0.1), dense_limit=limit)
    assert point.verdict == "not critical" and abs(point.gradient_norm - 0.1) < 1e-12
    assert abs(point.smallest - 0.5) < 1e-6
    assert "of H" in point.evidence


def test_the_gradient_is_measured_in_units_of_the_hessian():
    # at 3e-6 the step that undoes it is 1e-6 long: the default's edge
    assert cx.critical_point(Quadratic(UP, gradient=2.9e-6)).verdict == "minimum"
    assert cx.critical_point(Quadratic(UP, gradient=3.1e-6)).verdict == "not critical"
    assert cx.critical_point(Quadratic(UP, 0.1), gradient_tol=1.0).verdict == "minimum"
    scaled = Quadratic(UP, gradient=2.9e-6)
    scaled.matrix.dense *= 1e-9
    scaled._gradient *= 1e-9
    assert cx.critical_point(scaled).verdict == "minimum"


def test_an_eigenvalue_within_the_tolerance_of_zero_is_zero():
    values = torch.cat([UP, torch.tensor([1e-5])])
    assert cx.critical_point(Quadratic(values)).verdict == "minimum"
    assert cx.critical_point(Quadratic(values), tol=1e-4).verdict == "degenerate"
    values[-1] = -1e-5
    assert cx.critical_point(Quadratic(values)).verdict == "saddle"
    assert cx.critical_point(Quadratic(values), tol=1e-4).verdict == "degenerate"


def test_the_condition_number_is_told_where_it_is_known():
    assert abs(cx.critical_point(Quadratic(KINDS["saddle"])).condition_number - 6) < 1e-9
    for limit in LIMITS:
        for kind in ("minimum", "maximum"):
            found = cx.critical_point(Quadratic(KINDS[kind]), dense_limit=limit)
            assert abs(found.condition_number - 6) < 1e-6
        flat = cx.critical_point(Quadratic(KINDS["degenerate"]), dense_limit=limit)
        assert flat.condition_number == math.inf
    unknown = cx.critical_point(Quadratic(KINDS["saddle"]), dense_limit=0)
    assert math.isnan(unknown.condition_number)


def test_the_negative_share_is_exact_where_all_eigenvalues_are_known():
    point = cx.critical_point(Quadratic([-1.0, 0.0, 1.0, 2.0]))
    assert point.negative_fraction == pytest.approx(1 / 4)
    assert point.negative_share == pytest.approx(1 / 4)


def test_the_negative_share_is_estimated_without_bias():
    # two eigenvalues: the quadrature is exact for a probe, and only its weights are random
    values = torch.cat([-torch.ones(100), 3 * torch.ones(300)])
    point = cx.critical_point(Quadratic(values), dense_limit=0, probes=40, steps=4)
    assert abs(point.negative_fraction - 1 / 4) < 4 * (3 / 16 / 400 / 40 * 2) ** 0.5
    assert abs(point.negative_share - 1 / 10) < 0.01
    without = cx.critical_point(Quadratic(values), dense_limit=0, probes=0)
    assert math.isnan(without.negative_fraction) and without.products < point.products


def test_the_direction_leads_down_from_a_saddle():
    for limit in LIMITS:
        point = cx.critical_point(Quadratic(FLAT_SADDLE), dense_limit=limit)
        d = point.direction
        assert abs(float(d.norm()) - 1) < 1e-12
        assert abs(float(d @ Quadratic(FLAT_SADDLE).matrix.dense @ d) + 0.3) < 1e-6


def test_the_evidence_says_what_it_rests_on():
    risk = Quadratic(KINDS["saddle"])
    evidence = {n: cx.critical_point(risk, dense_limit=n).evidence for n in LIMITS}
    assert "all 180 eigenvalues" in evidence[1000]
    assert "Lanczos" in evidence[0] and "proven" in evidence[0]
    text = str(cx.critical_point(Quadratic(UP)))
    assert text.startswith("minimum: all 90 eigenvalues") and "gradient norm 0.00e+00" in text


def test_what_has_not_converged_claims_no_minimum():
    values = torch.linspace(1e-3, 1, 600, dtype=torch.float64)
    point = cx.critical_point(Quadratic(values), dense_limit=0, maxiter=12)
    assert point.verdict == "degenerate" and not point.converged
    assert "NOT converged" in str(point)


def test_a_seed_repeats_bits():
    risk = Quadratic(KINDS["saddle"])
    one, two = (cx.critical_point(risk, dense_limit=0, seed=3) for _ in range(2))
    assert torch.equal(one.direction, two.direction)
    assert (one.smallest, one.negative_share) == (two.smallest, two.negative_share)


# ---------------------------------------------------------------------- networks


def least_squares(rows: int, device="cpu", sign: float = 1.0) -> cx.EmpiricalRisk:
    """A linear model of 4 parameters at the solution of its least-squares problem."""
    model = nn.Linear(4, 1, bias=False).to(device, torch.float64)
    x, y = vector(rows, 4).to(device), vector(rows, 1, seed=2).to(device)
    with torch.no_grad():
        model.weight.copy_((torch.linalg.pinv(x) @ y).T)

    def loss(output, target):
        return sign * (output - target).square().mean()

    return cx.EmpiricalRisk(model, loss, (x, y), reduction="mean")


def test_least_squares_at_its_solution_is_a_minimum(device):
    assert cx.critical_point(least_squares(12, device)).verdict == "minimum"


def test_its_negative_is_a_maximum(device):
    assert cx.critical_point(least_squares(12, device, sign=-1.0)).verdict == "maximum"


def test_fewer_data_than_parameters_are_degenerate(device):
    assert cx.critical_point(least_squares(3, device)).verdict == "degenerate"


def test_a_deep_linear_network_at_zero_is_at_a_saddle(device):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model = model.to(device, torch.float64)
    for p in model.parameters():
        nn.init.zeros_(p)
    x, y = vector(9, 2).to(device), vector(9, 1, seed=4).to(device)
    point = cx.critical_point(cx.EmpiricalRisk(model, nn.MSELoss(), (x, y)))
    assert point.verdict == "saddle" and point.gradient_norm == 0
    # the spectrum of [[0, B], [Bᵀ, 0]] is symmetric
    assert abs(point.smallest + point.largest) < 1e-12


def test_a_network_at_random_is_nowhere_special(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device, torch.float64)
    data = (vector(9, 3).to(device), torch.arange(9, device=device) % 2)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    assert cx.critical_point(risk).verdict == "not critical"


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(risk=3), TypeError, "risk must have the methods of EmpiricalRisk; int has no gradient, hessian"),
        (dict(gradient_tol=-1.0), ValueError, "gradient_tol: expected a number >= 0, got -1.0"),
        (dict(tol=float("nan")), ValueError, "tol: expected a number >= 0, got nan"),
        (dict(probes=-1), ValueError, "probes: expected an integer of at least 0"),
        (dict(steps=0), ValueError, "steps: expected an integer of at least 1"),
        (dict(maxiter="9"), ValueError, "critical_point: maxiter: expected an integer of at least 1, got '9'"),
        (dict(seed=None), ValueError, "critical_point: seed: expected an integer, got None"),
        (dict(dense_limit="9"), ValueError, "dense_limit: expected an integer of at least 0"),
        (dict(tol="a"), TypeError, "critical_point: tol: expected a number >= 0, got 'a'"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(change, error, words):
    with pytest.raises(error, match=words):
        cx.critical_point(**{"risk": Quadratic([1.0, 2.0]), **change})


def test_a_gradient_of_another_size_is_refused():
    risk = Quadratic([1.0, 2.0])
    risk.matrix = Matrix(torch.eye(3).double())
    with pytest.raises(
        ValueError, match=r"gradient\(\) has shape \[2\] and risk.hessian\(\) 3 rows"
    ):
        cx.critical_point(risk)
