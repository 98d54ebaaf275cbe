"""Linear systems (A + λI) x = b by preconditioned conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import overload

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.conjugate_gradients import Solution
from curvext.algorithms.linear_system import (
    Named,
    Preconditioner,
    System,
    by_name,
    check,
    check_values,
    compared,
    flat_of,
    in_form,
    inverse_of,
    rows_of,
)
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, check_dense
from curvext.progress import Progress
from curvext.results import CGResult


@overload
def cg(
    A: SymmetricOperator,
    b: Tensor,
    damping: float = ...,
    tol: float | None = ...,
    maxiter: int | None = ...,
    x0: Tensor | Named | None = ...,
    preconditioner: Preconditioner | None = ...,
    progress: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
) -> CGResult[Tensor]: ...


@overload
def cg(
    A: SymmetricOperator,
    b: Named,
    damping: float = ...,
    tol: float | None = ...,
    maxiter: int | None = ...,
    x0: Tensor | Named | None = ...,
    preconditioner: Preconditioner | None = ...,
    progress: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
) -> CGResult[dict[str, Tensor]]: ...


@together
def cg(
    A: SymmetricOperator,
    b: Tensor | Named,
    damping: float = 0.0,
    tol: float | None = None,
    maxiter: int | None = None,
    x0: Tensor | Named | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> CGResult[Tensor] | CGResult[dict[str, Tensor]]:
    """Solves (A + λI) x = b for a symmetric A, by products alone.

    Where a search direction d has dᵀ(A + λI) d ≤ 0 (to rounding: eps · ‖A + λI‖ · dᵀd) the matrix is not
    positive definite. The iteration stops there, x is the last iterate before it, and the result brings d.

    Args:
        A: any curvext operator, or an object with ``shape`` (P, P), ``dtype``, ``device`` and ``matvec``.
        b: ``[P]``, or ``[P, K]`` for K systems that share the passes over the data; a column that has
            converged, or met negative curvature, is frozen. Or ``{name: tensor}`` for an operator on a model's
            parameters, and ``x`` and ``negative_curvature`` are such too. Where A has ``inner`` and ``entries``, the
            entries of this process, ``[P_r]`` or ``[P_r, K]``.
        damping: λ ≥ 0, in units of A. For a shift the other way pass ``A - s * Identity(P)``.
        tol: converged when ‖b − (A + λI) x‖ ≤ tol ‖b‖; None for eps^⅔ of A's dtype (4e-11 in float64,
            2e-5 in float32, 4e-2 in bfloat16).
        maxiter: iterations at most; None for 10 P, but no more than 1000.
        x0: where to start, shaped like ``b``, or named; None for zero, which saves a product.
        preconditioner: a tensor ``[P]`` or ``{name: tensor}``, the positive diagonal of a matrix like A + λI, by
            which residuals are divided; or an operator, or a function of a vector ``[P]``, that applies an
            approximate inverse. It must be symmetric and positive definite.
        progress: show a bar (needs tqdm).
        checkpoint: a path. A state is written there every 8 iterations, and an interrupted call that is made again with
            the same arguments goes on from it.

    Returns:
        CGResult(x, residual_norm, iterations, converged, negative_curvature, curvature, products). Numbers
        for one right-hand side, tensors ``[K]`` for a block. ``residual_norm`` is measured with a product of
        its own. ``x`` is in A's dtype, in float32 for a narrower one.

    Raises:
        TypeError: an argument is of no accepted kind or dtype.
        ValueError: a shape, device or range does not fit, ``b`` or ``x0`` has nan or inf (on the CPU; on CUDA
            they come back, not converged), the preconditioner is not positive definite, or the state at ``checkpoint``
            is of another run or damaged.
        OSError: that state cannot be read or written.

    Cost: a product for each iteration and one to measure the residual; where vectors are sharded, also two
    reductions for each iteration. Where rounding has led the
    iteration's own residual away from the measured one, it goes on from there. Memory: five vectors for
    each right-hand side.

    Source: Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems.

    Example:
        >>> import torch, curvext as cx
        >>> print(cx.cg(2 * cx.Identity(3), torch.tensor([2.0, 4.0, 6.0])))
        converged: residual 0.0e+00, 1 iterations, 2 products
    """
    if isinstance(b, Mapping):
        right, back = by_name(A, b)
        flat = cg(A, right, damping, tol, maxiter, x0, preconditioner, progress, checkpoint)
        return in_form(flat, back)
    x0 = flat_of(A, "x0", x0) if isinstance(x0, Mapping) else x0
    if isinstance(preconditioner, Mapping):
        preconditioner = flat_of(A, "preconditioner", preconditioner)
    products = Products(A, "cg", like=b if isinstance(b, Tensor) else None, sharded=True)
    check_dense("cg: b", b)
    full = products.is_full(b)
    b = products.local(b)
    x0 = products.local(x0) if isinstance(x0, Tensor) else x0
    if isinstance(preconditioner, Tensor):
        preconditioner = products.local(preconditioner)
    check(products, b, x0)
    damping = as_number(
        "cg: damping",
        damping,
        "a finite λ >= 0 (for A - sI pass that operator)",
        lambda x: 0 <= x < math.inf,
    )
    if tol is None:
        tol = torch.finfo(products.dtype).eps ** (2 / 3)
    tol = as_number("cg: tol", tol, "a finite number >= 0", lambda x: 0 <= x < math.inf)
    if maxiter is None:
        maxiter = min(10 * products.size, 1000)
    maxiter = as_integer("cg: maxiter", maxiter, 0)
    inverse = inverse_of(products, preconditioner)
    products.agree()
    check_values(products, b=b, x0=x0)
    if isinstance(preconditioner, Tensor) and products.vectors.any(~(preconditioner > 0)):
        raise ValueError(
            "cg: preconditioner: a diagonal must be positive; add the damping, or a small floor"
        )
    system = System(products, damping, inverse)
    start = None if x0 is None else rows_of(products, x0)
    solution = Solution(system, rows_of(products, b), start, tol, maxiter)
    state = Checkpoint(
        checkpoint,
        products,
        b=b,
        damping=damping,
        tol=tol,
        maxiter=maxiter,
        x0=x0,
        preconditioner=compared(preconditioner, inverse),
    )
    with Progress(progress, maxiter, "cg") as bar:
        solution.solve(state, bar)
    found = solution.result(single=b.ndim == 1)
    return in_form(found, A.full) if full else found  # type: ignore[attr-defined]
