"""The Lanczos recurrence by its own identities: Q Qᵀ = I, Q A Qᵀ = T, A Qᵀ = Qᵀ T + β q eᵀ."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from matrices import BlockMatrix, Matrix, vector, with_spectrum

from curvext.algorithms.lanczos import tridiagonalise
from curvext.algorithms.products import Products
from curvext.algorithms.vectors import dot, length


def tridiagonal(alpha, beta):
    return torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [Matrix, BlockMatrix])
def test_the_basis_is_orthonormal_and_makes_the_matrix_tridiagonal(dtype, kind, device):
    values = torch.cat([torch.linspace(-1, 1, 90), torch.tensor([5.0, 9.0])])
    A = with_spectrum(values, dtype, device, kind=kind)
    start = vector(92, 3).to(device, dtype)
    alpha, beta, basis = tridiagonalise(Products(A, "test"), start, 30)
    assert alpha.dtype is torch.float64 and basis.dtype is dtype
    eps = torch.finfo(dtype).eps
    for k in range(3):
        q, dense = basis[k].double(), A.dense.double()
        T = tridiagonal(alpha[:, k], beta[:, k])
        assert_close(q @ q.T, torch.eye(30, dtype=q.dtype, device=device), tol=20 * eps)
        assert_close(q @ dense @ q.T, T, tol=20 * eps)
        rest = q @ dense - T @ q  # only the last row is not zero, and β is its length
        assert_close(rest[:-1], torch.zeros_like(rest[:-1]), tol=50 * eps, scale=9.0)
        assert abs(float(rest[-1].norm() - beta[-1, k])) < 50 * eps * 9
        assert_close(q[0], start[:, k].double() / start[:, k].double().norm(), tol=20 * eps)


def test_columns_are_recurrences_of_their_own():
    A, start = with_spectrum(torch.linspace(0, 3, 40)), vector(40, 2)
    both = tridiagonalise(Products(A, "test"), start, 10)
    for k in range(2):
        alone = tridiagonalise(Products(A, "test"), start[:, k], 10)
        assert_close(both.alpha[:, k], alone.alpha)
        assert_close(both.basis[k], alone.basis)


def test_without_reorthogonalisation_the_first_steps_are_the_same_and_no_basis_is_held():
    A, start = with_spectrum(torch.linspace(0, 3, 60)), vector(60)
    plain = tridiagonalise(Products(A, "test"), start, 12, reorthogonalise=False)
    full = tridiagonalise(Products(A, "test"), start, 12)
    assert plain.basis is None
    assert_close(plain.alpha, full.alpha, tol=1e-8)
    assert_close(plain.beta, full.beta, tol=1e-8)


def test_reorthogonalisation_is_what_keeps_copies_away():
    values = torch.cat([torch.linspace(0, 1, 200), torch.tensor([10.0, 100.0])])
    A, start = with_spectrum(values), vector(202)
    largest = {
        reorthogonalise: torch.linalg.eigvalsh(
            tridiagonal(*tridiagonalise(Products(A, "test"), start, 60, reorthogonalise)[:2])
        )[-2]
        for reorthogonalise in (True, False)
    }
    assert abs(float(largest[True]) - 10) < 1e-9  # the second largest, once
    assert abs(float(largest[False]) - 100) < 1e-9  # a copy of the largest


def test_a_basis_is_orthogonal_where_eigenvalues_lie_close_beside_their_size():
    # one pass against the newest vector would leave ε ‖A‖ / β, some 1e-9
    A = with_spectrum(1e6 + torch.linspace(0, 1, 40, dtype=torch.float64))
    _, _, basis = tridiagonalise(Products(A, "test"), vector(40), 12)
    assert float((basis @ basis.T - torch.eye(12)).abs().max()) < 1e-12


def test_a_krylov_space_that_ends_decouples(device):
    A = Matrix(torch.diag(torch.linspace(1, 9, 30, dtype=torch.float64)).to(device))
    start = torch.zeros(30, dtype=torch.float64, device=device)
    start[[0, 4, 11]] = 1.0  # three eigenvectors: three steps
    alpha, beta, basis = tridiagonalise(Products(A, "test"), start, 8)
    assert (beta[:2] > 0.1).all() and not beta[2:].any()
    assert not alpha[3:].any() and not basis[3:].any()
    values, rotation = torch.linalg.eigh(tridiagonal(alpha, beta))
    weights = rotation[0].square()
    mean = (start @ A.dense @ start) / (start @ start)
    assert_close((weights * values).sum(), mean)
    assert abs(float(weights.sum()) - 1) < 1e-12


def test_a_bfloat16_operator_has_a_float32_basis():
    A = with_spectrum(torch.linspace(1, 2, 30), torch.bfloat16)
    _, _, basis = tridiagonalise(Products(A, "test"), vector(30), 5)
    assert basis.dtype is torch.float32
    assert_close(basis @ basis.T, torch.eye(5))


def test_the_start_is_left_alone_and_products_are_counted():
    A, start = with_spectrum(torch.linspace(1, 2, 30), kind=BlockMatrix), vector(30, 3)
    before, products = start.clone(), Products(A, "test")
    tridiagonalise(products, start, 5)
    assert torch.equal(start, before) and products.count == A.products == 15


def test_one_row_ends_at_once():
    alpha, beta, _ = tridiagonalise(Products(with_spectrum([4.0]), "test"), vector(1), 2)
    assert alpha.tolist() == [4.0, 0.0] and beta.tolist() == [0.0, 0.0]


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="test: steps: expected at least 1, got 0"):
        tridiagonalise(Products(with_spectrum([4.0]), "test"), vector(1), 0)


def test_long_float32_sums_keep_their_digits():
    rows = vector(1, 3_000_001).float()
    exact = rows.double().square().sum(1)
    assert_close(dot(rows, rows), exact, tol=1e-6)
    assert_close(length(rows), exact.sqrt(), tol=1e-6)


# ---------------------------------------------------------------------- products


def test_products_say_what_is_missing():
    with pytest.raises(TypeError, match="caller: A must have .* int has no shape, dtype, device, matvec"):  # fmt: skip
        Products(3, "caller")
    with pytest.raises(ValueError, match=r"caller: A must be square, got shape \(3,\)"):
        Products(Matrix(torch.ones(3)), "caller")
    with pytest.raises(TypeError, match="real floating point, got dtype torch.int64"):
        Products(Matrix(torch.ones(3, 3, dtype=torch.int64)), "caller")


def test_a_product_of_another_shape_is_refused():
    A = with_spectrum([1.0, 2.0])
    A.matvec = lambda v: v[:1]
    with pytest.raises(ValueError, match=r"caller: A returned \(1,\) for a block of shape \(2,\)"):
        Products(A, "caller").vector(vector(2))
    A.matvec = lambda v: None
    with pytest.raises(ValueError, match="caller: A returned NoneType"):
        Products(A, "caller").vector(vector(2))


def test_blocks_go_column_by_column_where_there_is_no_matmat():
    A = with_spectrum([1.0, 2.0, 3.0])
    products = Products(A, "caller")
    assert_close(products.block(vector(3, 4)), A.dense @ vector(3, 4))
    assert products.block(vector(3, 0)).shape == (3, 0)
    assert products.count == 4


def test_vectors_wider_than_the_operator_are_cast_there_and_back():
    A = with_spectrum([1.0, 2.0, 3.0], torch.bfloat16)
    products = Products(A, "caller")
    assert products.vector(torch.ones(3)).dtype is torch.float32
    assert products.block(torch.ones(3, 2)).dtype is torch.float32
    assert products.working is torch.float32
