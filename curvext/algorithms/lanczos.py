"""The Lanczos recurrence: A Qᵀ = Qᵀ T + β q eᵀ, with the basis as rows of one buffer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from curvext.algorithms.products import Products

#: β under this many units of rounding of ‖A‖ is rounding itself: the Krylov space is invariant
BREAKDOWN = 16


class Tridiagonal(NamedTuple):
    """What :func:`tridiagonalise` finds: T = Q A Qᵀ, by diagonals, and Q.

    Attributes:
        alpha: diagonal of T, ``[steps]`` or ``[steps, K]``, float64.
        beta: ``beta[j]`` couples q_j and q_{j+1}: the off-diagonal of T is ``beta[:-1]``, and
            ``beta[-1]`` is the norm of what A q_{steps−1} has outside of the basis. Like ``alpha``.
        basis: the rows q_j, ``[steps, P_r]`` or ``[K, steps, P_r]``; None where it was not asked for.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor | None


def tridiagonalise(
    products: Products, start: Tensor, steps: int, reorthogonalise: bool = True
) -> Tridiagonal:
    """T = Q A Qᵀ tridiagonal, after ``steps`` products from ``start``.

    K columns are K recurrences of their own, which share the passes over the data. Where the Krylov
    space ends earlier (β is rounding), the rest of α, β and Q is zero: T decouples there, so the rest
    has no weight in a quadrature. Nothing is read back to the host.

    Args:
        products: the operator.
        start: ``[P_r]`` or ``[P_r, K]``, any length but zero; ``products.working`` is its dtype.
        steps: at least 1. More than P is allowed and decouples.
        reorthogonalise: make every vector orthogonal to all before it. Without, only three vectors are
            held, no basis comes back, and copies of converged eigenvalues appear.

    Returns:
        Tridiagonal(alpha, beta, basis), the scalars in float64.

    Cost: ``steps`` products with K columns; reorthogonalised, step j also reads 2 j vectors for each. On sharded
    vectors step j takes one reduction for α of all columns, and one of j + 1 numbers for each column.

    Source: Paige (1972), Computational variants of the Lanczos method, variant (1,6); one full pass of
    classical Gram-Schmidt behind it makes two, which is enough (Daniel et al. 1976).
    """
    if steps < 1:
        raise ValueError(f"{products.caller}: steps: expected at least 1, got {steps}")
    columns = start.unsqueeze(1) if start.ndim == 1 else start
    size, count = columns.shape
    # the recurrence of each column works on rows, which are contiguous
    vectors = products.vectors
    rows = columns.to(products.working).T.contiguous()
    (square,) = vectors.dots([(rows, rows)])
    rows = rows / square.sqrt().to(rows.dtype).unsqueeze(1)
    alpha = torch.zeros(steps, count, dtype=torch.float64, device=rows.device)
    beta = torch.zeros_like(alpha)
    # with room for the vector ahead
    basis = rows.new_empty(count, steps + 1, size) if reorthogonalise else None
    before, scratch = torch.zeros_like(rows), torch.empty_like(rows)
    scale = alpha.new_zeros(count)
    for j in range(steps):
        if basis is not None and j == 0:
            basis[:, 0] = rows
        ahead = multiply(products, rows)
        if j:
            ahead.addcmul_(before, beta[j - 1].to(rows.dtype).unsqueeze(1), value=-1)
        alpha[j] = vectors.dots([(rows, ahead)], scratch)[0]
        ahead.addcmul_(rows, alpha[j].to(rows.dtype).unsqueeze(1), value=-1)
        if basis is None:
            beta[j] = vectors.dots([(ahead, ahead)], scratch)[0].sqrt()
        else:
            basis[:, j + 1] = ahead
            ahead = basis[:, j + 1]
            for k in range(count):
                beta[j, k] = vectors.orthogonalise(basis[k], j + 1, scratch[k : k + 1])
        beta[j], scale = normalise(ahead, alpha[j], beta[j], scale)
        before, rows = rows, ahead
    basis = None if basis is None else basis[:, :steps]
    if start.ndim == 1:
        return Tridiagonal(alpha[:, 0], beta[:, 0], None if basis is None else basis[0])
    return Tridiagonal(alpha, beta, basis)


def normalise(ahead: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gives each row of ``ahead`` unit length in place; one that is only rounding becomes zero.

    Args:
        ahead: rows ``[K, P_r]``, overwritten.
        alpha: ``[K]``.
        beta: their lengths, ``[K]``.
        scale: max of |α| + β before, the size of A seen so far, ``[K]``.

    Returns:
        β, 0 where it is rounding, and the new scale, ``[K]`` each.
    """
    scale = torch.maximum(scale, alpha.abs() + beta)
    there = beta > BREAKDOWN * torch.finfo(ahead.dtype).eps * scale
    factor = torch.where(there, 1 / beta, 0.0)
    ahead.mul_(factor.to(ahead.dtype).unsqueeze(1))
    return beta * there, scale


def multiply(products: Products, rows: Tensor) -> Tensor:
    """A applied to each row of ``[K, P_r]``, as rows that may be written to."""
    single = len(rows) == 1
    product = products.vector(rows[0])[None] if single else products.block(rows.T).T.contiguous()
    # an operator may give its argument back, as one that is the identity does
    return product.clone() if product.data_ptr() == rows.data_ptr() else product
