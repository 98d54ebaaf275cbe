"""Eigenpairs against torch.linalg.eigh, on matrices of prescribed spectrum."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from matrices import BlockMatrix, Matrix, vector, with_spectrum

import curvext as cx

BULK = torch.linspace(-1, 1, 200, dtype=torch.float64)
SPECTRA = {
    "outliers": torch.cat([BULK, torch.tensor([5.0, 8.0, 13.0, -7.0])]),
    "repeated": torch.cat([BULK, torch.tensor([5.0, 5.0, 5.0, 8.0])]),
    "repeated negative": torch.cat([BULK, torch.tensor([-3.0, -3.0, -3.0, 8.0])]),
    "clustered": torch.cat([BULK, 4 + 1e-5 * torch.arange(4.0), torch.tensor([9.0])]),
    "bulk": BULK,
    "rank 10": torch.cat([torch.zeros(150), torch.ones(10)]),
    "rank 1": torch.cat([torch.zeros(150), torch.tensor([2.0])]),
    "zero": torch.zeros(120),
    "identity": torch.ones(120),
    "negative": -torch.cat([torch.linspace(1, 2, 120), torch.tensor([50.0])]),
    "decaying": 10.0 ** -torch.linspace(0, 3, 150, dtype=torch.float64),
    "one": torch.tensor([-3.0]),
    "two": torch.tensor([-3.0, 1.0]),
}


def asked_for(values: torch.Tensor, k: int, which: str) -> torch.Tensor:
    """The oracle: the spectrum is known."""
    values = values.double().sort().values
    if which == "LM":
        return values[values.abs().argsort()[-k:]].sort().values
    if which == "BE":
        return torch.cat([values[: k // 2], values[len(values) - (k + 1) // 2 :]])
    return values[-k:] if which == "LA" else values[:k]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_the_eigenvalues_are_those_of_the_spectrum(name, which, device):
    values = SPECTRA[name]
    if (name, which) == ("bulk", "LM"):
        values = values + 0.3  # of a symmetric spectrum +λ and −λ are equally large
    k = min(4, len(values))
    A = with_spectrum(values, device=device)
    result = cx.eigsh(A, k, which)
    assert result.converged
    scale = float(values.abs().max())
    assert_close(result.values, asked_for(values, k, which), tol=1e-9, scale=scale)
    eye = torch.eye(k, dtype=torch.float64, device=device)
    assert_close(result.vectors.T @ result.vectors, eye, tol=1e-13)
    assert_close(
        (A.dense @ result.vectors - result.vectors * result.values).norm(dim=0),
        result.residuals,
        tol=1e-13,
        scale=max(scale, 1e-9),
    )


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", ["outliers", "repeated", "rank 10", "identity", "two"])
def test_narrow_dtypes_are_as_good_as_their_matrix(name, dtype, tol, device):
    values = SPECTRA[name]
    k = min(4, len(values))
    A = with_spectrum(values, dtype, device)
    result = cx.eigsh(A, k, "LA")
    assert result.values.dtype is result.vectors.dtype is torch.float32
    exact = torch.linalg.eigvalsh(A.dense.double())[-k:]
    assert result.converged
    assert_close(result.values, exact, tol=tol)
    assert_close(result.vectors.T @ result.vectors, torch.eye(k, device=device), tol=2e-6)


@pytest.mark.parametrize("multiplicity", [2, 3, 7])
@pytest.mark.parametrize("which", ["LM", "LA", "BE"])
def test_every_copy_of_a_repeated_eigenvalue_is_found(multiplicity, which):
    values = torch.cat([BULK + 0.3, torch.full((multiplicity,), 3.0)])
    k = multiplicity + 1
    result = cx.eigsh(with_spectrum(values), k, which)
    assert_close(result.values, asked_for(values, k, which), tol=1e-9)


def test_the_search_for_copies_is_what_finds_them():
    # diagonal, and few steps: no rounding brings in the copy
    A = Matrix(torch.diag(torch.cat([BULK, torch.tensor([1.5, 2.0, 2.0])])))
    A.matvec = lambda v: A.dense.diagonal() * v
    found = cx.eigsh(A, 2, "LA", tol=1e-3)
    assert found.values.tolist() == pytest.approx([2, 2], rel=1e-5)
    without = cx.eigsh(A, 2, "LA", tol=1e-3, verify=False)
    assert without.converged and without.values.tolist() == pytest.approx([1.5, 2], rel=1e-5)


def test_the_search_for_copies_goes_on_after_one_is_found():
    A = Matrix(torch.diag(torch.cat([BULK, torch.full((4,), 2.0)])))
    A.matvec = lambda v: A.dense.diagonal() * v
    found = cx.eigsh(A, 4, "LA", tol=1e-2)
    assert found.values.tolist() == pytest.approx([2, 2, 2, 2], rel=1e-3)


def test_equally_large_ends_do_not_keep_the_search_going():
    result = cx.eigsh(with_spectrum(torch.cat([BULK, torch.tensor([-4.0, 4.0])])), 1, "LM")
    assert result.converged and abs(abs(float(result.values)) - 4) < 1e-9
    assert result.products < 150


@pytest.mark.parametrize("k", [1, 2, 59, 60])
def test_any_k_up_to_all_of_them(k):
    values = torch.linspace(-2, 5, 60)
    result = cx.eigsh(with_spectrum(values), k, "SA")
    assert result.converged and result.products == 60
    assert_close(result.values, asked_for(values, k, "SA"), tol=1e-12)


def test_many_of_many():
    values = torch.linspace(0, 1, 150, dtype=torch.float64) ** 3
    result = cx.eigsh(with_spectrum(values), 30, "LA")
    assert_close(result.values, asked_for(values, 30, "LA"), tol=1e-9)


def test_products_are_counted_and_blocks_used_for_the_residuals():
    A = with_spectrum(SPECTRA["outliers"], kind=BlockMatrix)
    assert cx.eigsh(A, 3).products == A.products
    few = with_spectrum(torch.linspace(0, 1, 12), kind=BlockMatrix)
    assert cx.eigsh(few, 3).products == few.products == 12


def test_outliers_cost_little():
    A = with_spectrum(torch.cat([BULK / 100, torch.tensor([1.0, 2.0, 4.0])]))
    assert (
        cx.eigsh(A, 3, "LA", tol=1e-4).products <= 43
    )  # a cycle, one to look behind it, residuals


def test_a_seed_decides_all_and_repeats_bits(device):
    A = with_spectrum(SPECTRA["bulk"], torch.float32, device)
    one, two, other = (cx.eigsh(A, 3, seed=s) for s in (5, 5, 6))
    assert torch.equal(one.vectors, two.vectors) and torch.equal(one.values, two.values)
    assert not torch.equal(one.vectors, other.vectors)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    cx.eigsh(A, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_start_in_an_eigenvector_is_not_where_it_ends():
    A = with_spectrum(SPECTRA["outliers"])
    vectors = torch.linalg.eigh(A.dense).eigenvectors
    start = vectors[:, 77].clone()
    result = cx.eigsh(A, 2, "LA", v0=start)
    assert_close(result.values, asked_for(SPECTRA["outliers"], 2, "LA"), tol=1e-9)
    assert torch.equal(start, vectors[:, 77])


def test_a_start_nearby_saves_products():
    A = with_spectrum(torch.cat([torch.linspace(0, 1, 300), torch.tensor([1.1])]))
    top = torch.linalg.eigh(A.dense).eigenvectors[:, -1] + 1e-7 * vector(301)
    near = cx.eigsh(A, 1, "LA", v0=top, verify=False)
    assert near.products < cx.eigsh(A, 1, "LA", verify=False).products


def test_a_small_matrix_that_is_hard_is_formed_after_all():
    A = with_spectrum(10.0 ** -torch.linspace(0, 6, 150, dtype=torch.float64))
    result = cx.eigsh(A, 2, "SA")
    assert result.converged and result.products == A.products <= 150 + 160 + 2
    assert_close(result.values, torch.linalg.eigvalsh(A.dense)[:2], tol=1e-9, scale=1e-6)
    assert not cx.eigsh(A, 2, "SA", maxiter=200).converged


def test_too_few_products_are_told():
    A = with_spectrum(torch.linspace(0, 1, 400, dtype=torch.float64))
    result = cx.eigsh(A, 3, "LA", maxiter=25)
    assert not result.converged and result.products == A.products == 28
    assert "NOT converged" in str(result) and str(result).count("residual") == 3
    assert result.values.shape == (3,) and result.vectors.shape == (400, 3)
    # a Ritz value lies within its residual of an eigenvalue
    spectrum = torch.linalg.eigvalsh(A.dense)
    for value, residual in zip(result.values, result.residuals, strict=True):
        assert float((spectrum - value).abs().min()) <= float(residual) + 1e-12


def test_few_products_hold_for_small_matrices_too():
    A = with_spectrum(torch.linspace(0, 1, 50))
    result = cx.eigsh(A, 2, maxiter=10)
    assert result.products == 12 and not result.converged


def test_converged_pairs_print_themselves():
    text = str(cx.eigsh(with_spectrum([1.0, 2.0]), 2))
    assert text.startswith("2 eigenpairs, converged, 2 products") and "+2.000000e+00" in text


def test_a_tolerance_of_zero_is_refused_by_no_one_and_never_reached():
    assert not cx.eigsh(with_spectrum(SPECTRA["bulk"]), 2, tol=0.0, maxiter=300).converged


def test_identity_of_the_library():
    result = cx.eigsh(cx.Identity(300), 3)
    assert_close(result.values, torch.ones(3))
    assert result.converged


@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical_fisher"])
def test_the_spectrum_of_a_network(kind, device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    model = model.to(device, torch.float64)
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    risk = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x.to(device), y.to(device)))
    A = getattr(risk, kind)()
    assert A.size > 64  # so that it is Lanczos
    dense = torch.linalg.eigvalsh(A.to_dense())
    which = "LM" if kind == "hessian" else "LA"
    result = cx.eigsh(A, 3, which, tol=1e-8)
    assert_close(result.values, asked_for(dense.cpu(), 3, which), tol=1e-9)


def test_leading_pairs_are_those_of_the_gram_matrix():
    model = torch.nn.Linear(30, 4).double()
    x, y = vector(25, 30), torch.arange(25) % 4
    E = cx.EmpiricalFisherOperator(model, torch.nn.CrossEntropyLoss(), (x, y))
    assert_close(cx.eigsh(E, 4, "LA").values, E.eigh(4).values, tol=1e-9)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(k=0), ValueError, r"eigsh: k: expected 1..5 \(A is 5 x 5\), got 0"),
        (dict(k=6), ValueError, r"k: expected 1..5"),
        (dict(k=1.5), ValueError, "k: expected 1..5"),
        (dict(which="SM"), ValueError, "which: expected 'LM', 'LA', 'SA' or 'BE', got 'SM'; eigenvalues nearest zero"),
        (dict(tol=-1.0), ValueError, "tol: expected a number >= 0"),
        (dict(maxiter=1), ValueError, r"maxiter: expected an integer of at least 2 \(more products than k\), got 1"),
        (dict(ncv=2), ValueError, r"ncv: expected an integer of at least 3 \(k \+ 2 vectors\), got 2"),
        (dict(k="1"), ValueError, "k: expected 1..5"),
        (dict(tol="a"), TypeError, "tol: expected a number >= 0, got 'a'"),
        (dict(maxiter="9"), ValueError, "maxiter: expected an integer of at least 2"),
        (dict(ncv=4.0), ValueError, "ncv: expected an integer of at least 3 .*, got 4.0"),
        (dict(seed="x"), ValueError, "eigsh: seed: expected an integer, got 'x'"),
        (dict(seed=1.5), ValueError, "eigsh: seed: expected an integer, got 1.5"),
        (dict(v0=torch.ones(5, dtype=torch.float64).to_sparse()), TypeError, "v0: expected a dense tensor, .*sparse"),
        (dict(v0=torch.ones(4, dtype=torch.float64)), ValueError, r"v0: expected shape \[5\], got \[4\]"),
        (dict(v0=torch.ones(5)), TypeError, "v0: expected dtype torch.float64, got torch.float32"),
        (dict(v0=torch.zeros(5, dtype=torch.float64)), ValueError, "v0: expected finite entries, not all zero"),
        (dict(v0=[1]), TypeError, "v0: expected a tensor, got list"),
        (dict(A=torch.ones(5, 5)), TypeError, "eigsh: A must have .* Tensor has no matvec"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(change, error, words):
    call = {"A": with_spectrum(torch.arange(5.0)), "k": 1, **change}
    with pytest.raises(error, match=words):
        cx.eigsh(**call)
