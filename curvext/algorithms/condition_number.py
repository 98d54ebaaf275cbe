"""The condition number of an operator, from both ends of its spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.quadrature import DENSE_ROWS
from curvext.algorithms.together import together
from curvext.arguments import as_number
from curvext.results import ConditionNumber


@together
def condition_number(
    A: SymmetricOperator,
    damping: float = 0.0,
    seed: int = 0,
    tol: float | None = None,
    maxiter: int | None = None,
    progress: bool = False,
) -> ConditionNumber:
    """κ = max|λ| / min|λ| of the symmetric operator A + damping · I: how narrow the valley is.

    The ends of the spectrum are found by Lanczos, each with its residual. If both have one sign they are the answer.
    If not, the eigenvalue nearest zero lies inside the spectrum: it is looked for at the lower end of
    (A + damping · I)², slowly and at two products each, or where P ≤ 1024 among all eigenvalues of the matrix,
    formed by P products. Where it cannot be told from zero κ is inf, and ``lower`` says what is certain.

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        damping: added to the diagonal, as for a solver.
        seed: of the random starting vector.
        tol: of the eigenvalues, relative to the largest; None for eps^⅔ of A's dtype. What is below it counts as zero.
        maxiter: products at most in each search; None for 2000.
        progress: show a bar (needs tqdm).

    Returns:
        A :class:`ConditionNumber`. ``lower`` holds whatever the search missed, since eigenvalues can only lie farther
        out, or nearer to zero, than what was found. ``upper`` relies on Lanczos having found the ends.

    Raises:
        TypeError: A lacks an attribute.
        ValueError: an argument is out of range, A is not square, or P is 0.

    Cost: two ends of the spectrum by :func:`curvext.eigsh`: tens to hundreds of products.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss()
        >>> x = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> G = cx.GGNOperator(model, loss, (x, torch.zeros(3, 1)))
        >>> print(cx.condition_number(G))
        condition number 9 (3 products)
          eigenvalues from +6.667e-01 to +6.000e+00: positive definite
    """
    products = Products(A, "condition_number")
    if products.size == 0:
        raise ValueError("condition_number: A is 0 x 0: it has no spectrum")
    damping = as_number("condition_number: damping", damping, "a finite number")
    if tol is not None:
        tol = as_number("condition_number: tol", tol, "a number >= 0", lambda value: value >= 0)
    shifted = _Power(products, damping, 1)
    k = min(2, products.size)
    ends = eigsh(shifted, k, "BE", seed, tol=tol, maxiter=maxiter, progress=progress)
    if not bool(ends.values.isfinite().all()):
        raise ValueError("condition_number: A returned nan or inf")
    low, high = float(ends.values[0]), float(ends.values[-1])
    top, off = max(abs(low), abs(high)), float(ends.residuals.max())
    relative = torch.finfo(products.dtype).eps ** (2 / 3) if tol is None else tol
    zero = max(relative * top, off)  # what is not larger cannot be told from zero
    least, error, converged = min(abs(low), abs(high)), off, ends.converged
    if low < -zero and high > zero:
        kind = "indefinite"
        least, error, settled = _nearest_zero(products, damping, seed, tol, maxiter)
        converged = converged and settled
    elif low > zero or high < -zero:
        kind = "positive definite" if low > 0 else "negative definite"
    else:
        kind = "semidefinite" if top > 0 else "zero"
    if least > max(zero, error):
        value, lower, upper = top / least, top / least, (top + off) / (least - error)
    else:
        value, upper = float("inf"), float("inf")
        lower = top / max(least, zero) if top > 0 else 1.0
        kind += ", singular to the accuracy reached" if top > 0 else ""
    return ConditionNumber(value, lower, upper, low, high, kind, converged, products.count)


def _nearest_zero(
    products: Products, damping: float, seed: int, tol: float | None, maxiter: int | None
) -> tuple[float, float, bool]:
    """|λ| of the eigenvalue nearest zero, how far it may be off, and whether the search converged."""
    if products.size <= DENSE_ROWS and (maxiter is None or products.size <= maxiter):
        values = torch.linalg.eigvalsh(products.dense()) + damping
        return float(values.abs().min()), 0.0, True
    found = eigsh(_Power(products, damping, 2), 1, "SA", seed, tol, maxiter)
    v = found.vectors[:, 0]
    # min|λ| ≤ ‖A v‖ for any unit v, and some λ² lies within the residual of ‖A v‖²
    size = float(_Power(products, damping, 1).matvec(v).double().norm() / v.double().norm())
    below = max(size**2 - float(found.residuals[0]), 0.0) ** 0.5
    return size, size - below, found.converged


class _Power:
    """(A + damping · I) to the power of 1 or 2; ``products`` counts the products with A."""

    def __init__(self, products: Products, damping: float, power: int) -> None:
        self.shape = (products.size, products.size)
        self.dtype = products.working
        self.device = products.device
        self._products = products
        self._damping = damping
        self._power = power

    def matvec(self, v: Tensor) -> Tensor:
        for _ in range(self._power):
            v = self._products.vector(v) + self._damping * v
        return v

    def matmat(self, V: Tensor) -> Tensor:
        for _ in range(self._power):
            V = self._products.block(V) + self._damping * V
        return V
