"""Condition numbers against all eigenvalues; the bounds hold them."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from matrices import BlockMatrix, Matrix, with_spectrum

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

DEFINITE = torch.cat([torch.linspace(1, 2, 195), torch.tensor([0.1, 0.1, 0.3, 30.0, 40.0])])
INDEFINITE = torch.cat([torch.linspace(0.5, 3, 150), torch.linspace(-4, -0.25, 150)])


def truth(A):
    size = torch.linalg.eigvalsh(A.dense.double()).abs()
    return float(size.max() / size.min())


@pytest.mark.parametrize("sign, kind", [(1, "positive definite"), (-1, "negative definite")])
def test_a_definite_matrix(sign, kind, device):
    A = with_spectrum(sign * DEFINITE, device=device, kind=BlockMatrix)
    answer = cx.condition_number(A)
    assert answer.value == pytest.approx(truth(A), rel=1e-8) and answer.converged
    assert answer.lower * (1 - 1e-12) <= truth(A) <= answer.upper * (1 + 1e-12)
    assert answer.upper / answer.lower < 1 + 1e-6
    assert answer.kind == kind and answer.products == A.products
    ends = sorted([answer.smallest, answer.largest])
    assert ends == pytest.approx(sorted([sign * 0.1, sign * 40.0]), rel=1e-6)


@pytest.mark.parametrize("rows", [1024, 100])
def test_an_indefinite_matrix_has_its_smallest_inside(rows, monkeypatch):
    monkeypatch.setattr(sys.modules["curvext.algorithms.condition_number"], "DENSE_ROWS", rows)
    A = with_spectrum(INDEFINITE, kind=BlockMatrix)
    answer = cx.condition_number(A)
    assert answer.kind == "indefinite" and answer.converged
    assert answer.value == pytest.approx(16, rel=1e-6)
    assert answer.lower * (1 - 1e-9) <= 16 <= answer.upper * (1 + 1e-9)
    assert answer.products == A.products


def test_damping_is_added_to_every_eigenvalue():
    A = with_spectrum(DEFINITE - 0.1)
    assert math.isinf(cx.condition_number(A).value)
    assert cx.condition_number(A, damping=1.0).value == pytest.approx(40.9, rel=1e-6)
    shifted = cx.condition_number(with_spectrum(INDEFINITE), damping=0.1)
    assert shifted.value == pytest.approx(3.9 / 0.15, rel=1e-6)


def test_a_singular_matrix_is_inf_with_a_lower_bound():
    values = torch.cat([torch.zeros(50), torch.linspace(1, 2, 50)])
    for sign in (1, -1):
        answer = cx.condition_number(with_spectrum(sign * values))
        assert math.isinf(answer.value) and math.isinf(answer.upper) and answer.lower > 1e9
        assert answer.kind == "semidefinite, singular to the accuracy reached"
    both = torch.cat([values, -values])
    answer = cx.condition_number(with_spectrum(both))
    assert math.isinf(answer.value) and answer.kind.startswith("indefinite, singular")


def test_the_zero_matrix_and_the_size_1():
    zero = cx.condition_number(Matrix(torch.zeros(20, 20)))
    assert math.isinf(zero.value) and zero.kind == "zero" and zero.lower == 1
    one = cx.condition_number(Matrix(torch.full((1, 1), -2.5)))
    assert one.value == 1 and one.kind == "negative definite"
    assert cx.condition_number(cx.Identity(200)).value == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="condition_number: A is 0 x 0"):
        cx.condition_number(Matrix(torch.zeros(0, 0)))


def test_too_few_products_are_told():
    A = with_spectrum(torch.logspace(-4, 0, 300), kind=BlockMatrix)
    answer = cx.condition_number(A, maxiter=15)
    assert not answer.converged and "NOT converged" in str(answer)
    assert answer.lower <= truth(A) * (1 + 1e-9)


def test_float32_sees_as_far_as_its_digits():
    assert cx.condition_number(with_spectrum(DEFINITE, torch.float32)).value == pytest.approx(
        400, rel=1e-2
    )
    assert math.isinf(
        cx.condition_number(with_spectrum(torch.logspace(-7, 0, 100), torch.float32)).value
    )


def test_the_ggn_of_a_network():
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)
    ).double()
    risk = cx.EmpiricalRisk(
        model, torch.nn.MSELoss(), (torch.randn(90, 4).double(), torch.randn(90, 2).double())
    )
    G, H = risk.ggn(), risk.hessian()
    for A in (G, H, G + 1e-3 * cx.Identity(G.size)):
        size = torch.linalg.eigvalsh(A.to_dense()).abs()
        answer = cx.condition_number(A)
        kappa = float(size.max() / size.min())
        assert answer.lower * (1 - 1e-9) <= kappa <= answer.upper * (1 + 1e-9)


def test_it_prints_itself():
    assert str(cx.condition_number(with_spectrum([1.0, -2.0, 4.0]))).splitlines() == [
        "condition number 4 (6 products)",
        "  eigenvalues from -2.000e+00 to +4.000e+00: indefinite",
    ]
    singular = str(cx.condition_number(with_spectrum([0.0, 0.0, 4.0])))
    assert singular.startswith("condition number inf, at least 2.")


def test_bad_arguments_are_named():
    with pytest.raises(
        ValueError, match="condition_number: damping: expected a finite number, got inf"
    ):
        cx.condition_number(cx.Identity(3), damping=float("inf"))
    with pytest.raises(ValueError, match="condition_number: A must be square"):
        cx.condition_number(Matrix(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="condition_number: A returned nan or inf"):
        cx.condition_number(Matrix(torch.full((2, 2), torch.nan)))
