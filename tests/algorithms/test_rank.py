"""Effective ranks and null spaces against all eigenvalues."""

from __future__ import annotations

import pytest
import torch
from matrices import BlockMatrix, Matrix, with_spectrum

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["entropy", "participation", "stable"]
SIZE = 400
SPECTRUM = torch.cat(
    [torch.zeros(250), torch.linspace(0.5, 1, 144), torch.tensor([-3.0, -2, 5, 6, 8, 10])]
)


def by_definition(values, kind):
    """From all eigenvalues."""
    size = values.double().abs()
    if kind == "entropy":
        p = size[size > 0] / size.sum()
        return float(torch.exp(-(p * p.log()).sum()))
    if kind == "participation":
        return float(size.sum() ** 2 / size.square().sum())
    return float(size.square().sum() / size.max() ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_small_matrices_are_exact(kind, device):
    A = with_spectrum(SPECTRUM, device=device)
    answer = cx.effective_rank(A, kind)
    assert float(answer.value) == pytest.approx(by_definition(SPECTRUM, kind), rel=1e-6)
    assert float(answer.standard_error) == 0 and answer.products == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_as_large_as_the_standard_errors_say(kind):
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    truth = by_definition(SPECTRUM, kind)
    answers = [cx.effective_rank(A, kind, probes=12, steps=30, seed=s) for s in range(100)]
    assert all(a.products == 360 for a in answers)
    errors = torch.stack([a.value - truth for a in answers])
    standard = torch.stack([a.standard_error for a in answers])
    # Student's t of 11 degrees of freedom: 92.9 of 100
    assert 0.83 <= float((errors.abs() <= 2 * standard).double().mean()) <= 1
    assert 0.75 <= float(standard.square().mean().sqrt() / errors.square().mean().sqrt()) <= 1.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_equal_eigenvalues_count_as_many_as_they_are(kind, count):
    values = torch.zeros(50)
    values[:count] = -2.0
    assert float(cx.effective_rank(with_spectrum(values), kind).value) == pytest.approx(
        count, rel=1e-9
    )


def test_the_definitions_come_in_order():
    values = [float(cx.effective_rank(with_spectrum(SPECTRUM), kind).value) for kind in KINDS]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_zero_matrix_has_rank_0(kind):
    for size in (1, 2000):
        answer = cx.effective_rank(2.0 * cx.Identity(size) - 2.0 * cx.Identity(size), kind, 2, 3)
        assert float(answer.value) == float(answer.standard_error) == 0


def test_null_spaces_are_counted():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    exact = cx.null_space_dimension(A)
    assert float(exact.value) == pytest.approx(250, abs=1e-9) and float(exact.standard_error) == 0
    answers = [cx.null_space_dimension(A, probes=9, steps=40, seed=s) for s in range(100)]
    errors = torch.stack([a.value - 250 for a in answers])
    standard = torch.stack([a.standard_error for a in answers])
    # Student's t of 8 degrees of freedom: 92 of 100; what is undecided makes bars longer
    assert 0.82 <= float((errors.abs() <= 2 * standard).double().mean()) <= 1
    assert 0.75 <= float(standard.square().mean().sqrt() / errors.square().mean().sqrt()) <= 1.5


def test_too_few_steps_show_in_the_error_of_a_null_space():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    few = cx.null_space_dimension(A, probes=9, steps=3)
    assert abs(float(few.value) - 250) <= 2 * float(few.standard_error)
    assert float(few.standard_error) > 50


def test_the_tolerance_decides_what_is_zero():
    A = with_spectrum([0.0, 1e-10, 1e-6, 1e-3, 1.0])
    found = [float(cx.null_space_dimension(A, tol=t).value) for t in (1e-12, 1e-8, 1e-4, 1e-2)]
    assert found == pytest.approx([1, 2, 3, 4])
    assert float(cx.null_space_dimension(A).value) == pytest.approx(2)  # √eps


def test_the_zero_matrix_is_all_null_space_and_the_identity_has_none():
    assert (
        float(cx.null_space_dimension(Matrix(torch.zeros(1500, 1500)), probes=2, steps=3).value)
        == 1500
    )
    assert float(cx.null_space_dimension(cx.Identity(1500), probes=2, steps=3).value) == 0


def test_the_empirical_fisher_of_a_network_has_the_rank_of_its_samples():
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5)
    ).double()
    data = (torch.randn(25, 10).double(), torch.randint(5, (25,)))
    E = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data).empirical_fisher()
    answer = cx.null_space_dimension(E, probes=8, steps=35)
    assert answer.products == 280 < E.size == 325
    assert abs(float(answer.value) - 300) <= 3 * float(answer.standard_error) < 30


def test_bits_repeat_with_the_seed():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    for function in (cx.effective_rank, cx.null_space_dimension):
        one, two, other = (function(A, probes=3, steps=30, seed=s) for s in (1, 1, 2))
        assert torch.equal(one.value, two.value) and torch.equal(
            one.standard_error, two.standard_error
        )
        assert not torch.equal(one.value, other.value)


def test_bad_arguments_are_named():
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(
        ValueError, match="effective_rank: kind: expected one of .*'entropy'.*, got 'x'"
    ):
        cx.effective_rank(A, "x")
    with pytest.raises(ValueError, match="effective_rank: steps: expected an integer"):
        cx.effective_rank(A, steps=0)
    with pytest.raises(
        ValueError, match="null_space_dimension: tol: expected 0 <= tol < 1, got 1.0"
    ):
        cx.null_space_dimension(A, tol=1.0)
    with pytest.raises(ValueError, match="null_space_dimension: A returned nan or inf"):
        cx.null_space_dimension(Matrix(torch.full((2, 2), torch.inf)))
