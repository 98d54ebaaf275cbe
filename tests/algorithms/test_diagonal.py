"""Diagonals: exact where they must be, elsewhere as far off as their standard errors say."""

from __future__ import annotations

import pytest
import torch
from matrices import BlockMatrix, Matrix, with_spectrum

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["hutchinson", "xdiag"]
SIZE = 60
SPECTRA = {
    "falling fast": torch.logspace(2, -6, SIZE),
    "falling slowly": 1 / torch.arange(1, SIZE + 1.0),
    "flat": torch.linspace(1, 2, SIZE),
    "indefinite": torch.cat([torch.linspace(-1, 1, SIZE - 4), torch.tensor([20.0, -15, 10, -30])]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_errors_are_as_large_as_the_standard_errors_say(method, spectrum):
    A = with_spectrum(SPECTRA[spectrum], kind=BlockMatrix)
    truth = A.dense.diagonal()
    answers = [cx.diagonal(A, method, 24, seed=seed) for seed in range(200)]
    errors = torch.stack([a.value - truth for a in answers])
    standard = torch.stack([a.standard_error for a in answers])
    # 11 degrees of freedom: Student's t is within ±2 in 92.9 of 100 cases; entries of one answer are alike
    assert 0.88 <= float((errors.abs() <= 2 * standard).double().mean()) <= 0.99
    ratio = standard.square().mean(0).sqrt() / errors.square().mean(0).sqrt()
    assert 0.94 <= float(ratio.mean()) <= 1.35  # a covariance under 0 is taken for 0
    bias = errors.mean(0) / (errors.std(0) / 200**0.5)
    assert float(bias.abs().max()) < 4.5, "an entry is biased"


class Recorded(BlockMatrix):
    """One that keeps what it is asked for."""

    def matmat(self, V):
        self.asked = torch.cat([getattr(self, "asked", V[:, :0]), V], 1)
        return super().matmat(V)


def test_the_error_of_xdiag_is_that_of_estimates_that_leave_out_one_and_two_probes():
    dense = with_spectrum(1 / torch.arange(1, 13.0)).dense
    A = Recorded(dense)
    answer = cx.diagonal(A, "xdiag", 6, seed=3)
    Z, k = A.asked[:, :3], 3

    def estimate(i, *left_out):
        others = [m for m in range(k) if m not in (i, *left_out)]
        Q = torch.linalg.qr(dense @ Z[:, others]).Q
        outside = dense @ Z[:, i] - Q @ (Q.T @ (dense @ Z[:, i]))
        return (Q @ Q.T @ dense).diagonal() + Z[:, i] * outside

    one = [estimate(i) for i in range(k)]
    pairs = [(i, j) for i in range(k) for j in range(k) if i < j]
    shared = [(one[i] - estimate(i, j)) * (one[j] - estimate(j, i)) for i, j in pairs]
    covariance = torch.stack(shared).mean(0).clamp(min=0)
    error = (torch.stack(one).var(0) / k + covariance).sqrt()
    assert bool((covariance > 0).any())
    torch.testing.assert_close(answer.value, torch.stack(one).mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.standard_error, error, rtol=1e-9, atol=1e-12)


def test_xdiag_is_better_where_eigenvalues_fall_off():
    A = with_spectrum(1 / torch.arange(1, SIZE + 1.0) ** 2, kind=BlockMatrix)
    off = [(cx.diagonal(A, m, 30).value - A.dense.diagonal()).norm() for m in METHODS]
    assert off[1] < off[0] / 10


@pytest.mark.parametrize("method", METHODS)
def test_as_many_probes_as_rows_give_the_exact_diagonal(method, device):
    A = with_spectrum(torch.linspace(-1, 3, 20), device=device)
    for probes in (20, 500):
        answer = cx.diagonal(A, method, probes)
        assert torch.equal(answer.value, A.dense.diagonal())
        assert not answer.standard_error.any() and answer.products == 20


@pytest.mark.parametrize("rank", [1, 2, 14])
def test_xdiag_is_exact_for_a_low_rank(rank):
    values = torch.zeros(SIZE, dtype=torch.float64)
    values[:rank] = torch.linspace(1, -2, rank)
    A = with_spectrum(values, kind=BlockMatrix)
    for seed in range(5):
        answer = cx.diagonal(A, "xdiag", 30, seed)
        assert float((answer.value - A.dense.diagonal()).abs().max()) < 1e-13
        assert float(answer.standard_error.max()) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_matrix_and_the_sizes_0_and_1(method):
    for dense in (torch.zeros(50, 50), torch.zeros(0, 0), torch.full((1, 1), -2.5)):
        answer = cx.diagonal(Matrix(dense), method, 10)
        assert torch.equal(answer.value, dense.diagonal()) and not answer.standard_error.any()


def test_hutchinson_is_exact_for_a_diagonal_matrix():
    answer = cx.diagonal(Matrix(torch.arange(50.0).diag()), probes=3)
    assert torch.equal(answer.value, torch.arange(50.0)) and not answer.standard_error.any()


@pytest.mark.parametrize("method, fewest", [("hutchinson", 1), ("xdiag", 2)])
def test_a_single_sample_has_no_standard_error(method, fewest):
    A = with_spectrum(torch.linspace(1, 2, 30))
    answer = cx.diagonal(A, method, fewest)
    assert torch.isfinite(answer.value).all() and bool(answer.standard_error.isinf().all())
    with pytest.raises(
        ValueError, match=f"diagonal: probes: .*at least {fewest} .*got {fewest - 1}"
    ):
        cx.diagonal(A, method, fewest - 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype, unit", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_is_summed_in_float64(method, dtype, unit):
    A = with_spectrum(torch.linspace(1, 2, 200), dtype, kind=BlockMatrix)
    answer = cx.diagonal(A, method, 40)
    assert answer.value.dtype is torch.float32
    off = (answer.value - A.dense.diagonal().float()).abs()
    assert bool((off <= 6 * answer.standard_error + unit).all())


@pytest.mark.parametrize("method", METHODS)
def test_bits_repeat_with_the_seed_and_the_global_state_is_left(method):
    A = with_spectrum(SPECTRA["indefinite"])
    before = torch.get_rng_state()
    first, second = cx.diagonal(A, method, 30, seed=3), cx.diagonal(A, method, 30, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.standard_error, second.standard_error)
    assert not torch.equal(first.value, cx.diagonal(A, method, 30, seed=4).value)


def test_a_network_within_its_standard_errors():
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5)
    ).double()
    data = (torch.randn(40, 6).double(), torch.randint(5, (40,)))
    risk = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
    for A in (risk.hessian(), risk.ggn(), risk.empirical_fisher()):
        truth = A.to_dense().diagonal()
        for method in METHODS:
            answer = cx.diagonal(A, method, 80)
            assert (
                float(((answer.value - truth).abs() <= 3 * answer.standard_error).double().mean())
                > 0.97
            )


def test_bad_arguments_are_named():
    A = with_spectrum([1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"diagonal: method: expected one of .*'xdiag'.*, got 'xtrace'"
    ):
        cx.diagonal(A, "xtrace")
    with pytest.raises(ValueError, match="diagonal: probes: expected an integer"):
        cx.diagonal(A, probes=True)
    with pytest.raises(ValueError, match="diagonal: A returned nan or inf"):
        cx.diagonal(Matrix(torch.full((2, 2), torch.inf)))
