"""Traces: exact where they must be, elsewhere as far off as their standard errors say."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import BlockMatrix, Matrix, with_spectrum

import curvext as cx
from curvext.results import Estimate

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["hutchinson", "hutch++", "xtrace"]
SIZE = 80
SEEDS = 200
SPECTRA = {
    "falling fast": torch.logspace(2, -6, SIZE),
    "falling slowly": 1 / torch.arange(1, SIZE + 1.0),
    "flat": torch.linspace(1, 2, SIZE),
    "indefinite": torch.cat(
        [torch.linspace(-1, 1, SIZE - 6), torch.tensor([20.0, -15, 10, 8, 7, -30])]
    ),
    "clustered": torch.cat(
        [torch.linspace(0.9, 1.1, SIZE - 3), torch.tensor([50.0, 50.01, 50.02])]
    ),
}


def many(A, method, probes=30):
    """Errors and standard errors over seeds."""
    truth = A.dense.double().trace()
    answers = [cx.trace(A, method, probes, seed=seed) for seed in range(SEEDS)]
    assert all(a.products <= probes for a in answers)
    errors = torch.stack([a.value - truth for a in answers])
    return errors, torch.stack([a.standard_error for a in answers])


def test_the_standard_error_of_two_probes_is_half_their_difference():
    # zᵀ A z = 2 z₁ z₂ is 2 or −2: two probes agree, or differ by 4
    dense = torch.zeros(
        5, 5, dtype=torch.float64
    )  # more rows than probes, or every row would be asked for
    dense[0, 1] = dense[1, 0] = 1
    A = Matrix(dense)
    answers = [cx.trace(A, "hutchinson", 2, seed=seed) for seed in range(20)]
    for answer in answers:
        assert answer.value in (-2.0, 0.0, 2.0)
        assert answer.standard_error == (2.0 if answer.value == 0 else 0.0)
    assert {float(answer.value) for answer in answers} == {-2.0, 0.0, 2.0}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_errors_are_as_large_as_the_standard_errors_say(method, spectrum):
    errors, standard = many(with_spectrum(SPECTRA[spectrum], kind=BlockMatrix), method)
    share = float((errors.abs() <= 2 * standard).double().mean())
    # Student's t with 9 degrees of freedom, the fewest here, is within ±2 in 92.3 of 100 cases
    spread = math.sqrt(0.923 * 0.077 / SEEDS)
    assert 0.923 - 3.5 * spread <= share <= 1.0
    assert 0.75 <= float(standard.square().mean().sqrt() / errors.square().mean().sqrt()) <= 1.3
    assert abs(float(errors.mean())) <= 4 * float(errors.std()) / math.sqrt(SEEDS), "biased"


def test_without_their_covariance_left_out_estimates_would_seem_better_than_they_are(monkeypatch):
    A = with_spectrum(SPECTRA["falling fast"], kind=BlockMatrix)
    _, whole = many(A, "xtrace")
    monkeypatch.setattr("curvext.algorithms.leave_one_out.Sketch.full", False)
    errors, standard = many(A, "xtrace")
    sizes = [float(t.square().mean().sqrt()) for t in (errors, whole, standard)]
    assert sizes[2] < 0.8 * sizes[1], "the covariance is a good part of the variance"
    assert sizes[2] < 0.95 * sizes[0]


def test_methods_that_sketch_are_better_where_eigenvalues_fall_off():
    A = with_spectrum(1 / torch.arange(1, SIZE + 1.0) ** 2, kind=BlockMatrix)
    plain, deflated, leave_one_out = (
        float(many(A, method)[0].square().mean().sqrt()) for method in METHODS
    )
    assert leave_one_out < deflated < plain / 10


@pytest.mark.parametrize("method", METHODS)
def test_as_many_probes_as_rows_give_the_exact_trace(method, device):
    A = with_spectrum(torch.linspace(-1, 3, 20), device=device)
    for probes in (20, 500):
        answer = cx.trace(A, method, probes)
        assert float(answer.value) == pytest.approx(float(A.dense.trace()), rel=1e-13)
        assert float(answer.standard_error) == 0
        assert answer.products == 20 and answer.value.device == A.device


@pytest.mark.parametrize(
    "method, rank, probes",
    [("hutch++", 10, 30), ("hutch++", 1, 30), ("xtrace", 14, 30), ("xtrace", 1, 5)],
)
def test_a_low_rank_is_exact(method, rank, probes):
    values = torch.zeros(SIZE, dtype=torch.float64)
    values[:rank] = torch.linspace(-1, 2, rank) if rank > 1 else 3.0
    A = with_spectrum(values, kind=BlockMatrix)
    for seed in range(5):
        answer = cx.trace(A, method, probes, seed)
        assert abs(float(answer.value - values.sum())) < 1e-12
        assert float(answer.standard_error) < 1e-12


def test_a_rank_just_over_the_sketch_is_not_exact():
    A = with_spectrum(torch.cat([torch.ones(16), torch.zeros(SIZE - 16)]), kind=BlockMatrix)
    for method in ("hutch++", "xtrace"):
        assert float(cx.trace(A, method, 30).standard_error) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_matrix_and_the_sizes_0_and_1(method):
    for dense, truth in (
        (torch.zeros(50, 50), 0.0),
        (torch.zeros(0, 0), 0.0),
        (torch.full((1, 1), -2.5), -2.5),
    ):
        answer = cx.trace(Matrix(dense), method, 10)
        assert float(answer.value) == truth and float(answer.standard_error) == 0


def test_hutchinson_is_exact_for_a_diagonal_matrix():
    answer = cx.trace(Matrix(torch.arange(50.0).diag()), probes=3)
    assert float(answer.value) == 1225 and float(answer.standard_error) == 0


@pytest.mark.parametrize("method, fewest", [("hutchinson", 1), ("hutch++", 3), ("xtrace", 2)])
def test_a_single_sample_has_no_standard_error(method, fewest):
    A = with_spectrum(torch.linspace(1, 2, 30))
    answer = cx.trace(A, method, fewest)
    assert torch.isfinite(answer.value) and float(answer.standard_error) == float("inf")
    with pytest.raises(
        ValueError,
        match=f"trace: probes: expected an integer of at least {fewest} .*got {fewest - 1}",
    ):
        cx.trace(A, method, fewest - 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype, unit", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision_is_summed_in_float64(method, dtype, unit):
    A = with_spectrum(torch.linspace(1, 2, 300), dtype, kind=BlockMatrix)
    truth = float(A.dense.double().trace())
    answer = cx.trace(A, method, 40)
    assert answer.value.dtype is torch.float32
    assert abs(float(answer.value) - truth) < 5 * float(answer.standard_error) + unit * truth
    exact = cx.trace(A, method, 300)
    assert float(exact.value) == pytest.approx(truth, rel=1e-6), "entries are the matrix's own"


@pytest.mark.parametrize("method", METHODS)
def test_bits_repeat_with_the_seed_and_the_global_state_is_left(method):
    A = with_spectrum(SPECTRA["indefinite"])
    before = torch.get_rng_state()
    first, second = cx.trace(A, method, 30, seed=3), cx.trace(A, method, 30, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.standard_error, second.standard_error)
    assert not torch.equal(first.value, cx.trace(A, method, 30, seed=4).value)


def test_columns_and_blocks_are_the_same():
    values = SPECTRA["flat"]
    one, other = with_spectrum(values), with_spectrum(values, kind=BlockMatrix)
    for method in METHODS:
        a, b = cx.trace(one, method, 33), cx.trace(other, method, 33)
        assert float(a.value) == pytest.approx(float(b.value), rel=1e-12)
        assert one.products == a.products == b.products == other.products
        one.products = other.products = 0


def test_products_are_counted_within_the_budget():
    A = with_spectrum(SPECTRA["flat"])
    assert [cx.trace(A, m, 31).products for m in METHODS] == [31, 31, 30]


def test_an_operator_without_dtype_and_device():
    answer = cx.trace(2.5 * cx.Identity(100), probes=10)
    assert float(answer.value) == 250 and answer.value.dtype is torch.get_default_dtype()


def test_a_network_within_three_standard_errors():
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5)
    ).double()
    data = (torch.randn(40, 6).double(), torch.randint(5, (40,)))
    risk = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
    for A in (risk.hessian(), risk.ggn(), risk.empirical_fisher()):
        truth = A.to_dense().trace()
        for method in METHODS:
            answer = cx.trace(A, method, 60)
            assert 0 < abs(answer.value - truth) <= 3 * answer.standard_error


def test_bad_arguments_are_named():
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"trace: method: expected one of .*'xtrace'.*, got 'exact'"
    ):
        cx.trace(A, "exact")
    with pytest.raises(ValueError, match="trace: probes: expected an integer"):
        cx.trace(A, probes=2.5)
    with pytest.raises(TypeError, match="trace: A must have .* Tensor has no matvec"):
        cx.trace(torch.eye(2))
    with pytest.raises(ValueError, match="trace: A returned nan or inf"):
        cx.trace(Matrix(torch.full((2, 2), torch.nan)))


def test_an_estimate_prints_the_digits_that_its_error_leaves():
    def shown(value, error):
        return str(Estimate(torch.tensor(value), torch.tensor(error), 7))

    assert shown(1234.5678, 3.21) == "1234.6 ± 3.2 (7 products)"
    assert shown(0.0012345, 0.5) == "0.0012 ± 0.5 (7 products)"
    assert shown(2.0, 0.0) == "2 exactly (7 products)"
    assert shown(2.0, float("inf")) == "2 ± inf (7 products)"
    many = Estimate(torch.zeros(3), torch.tensor([0.0, 0.25, 0.1]), 7)
    assert str(many) == "estimate of shape [3], standard errors up to 0.25 (7 products)"
