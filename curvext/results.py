"""Results of algorithms: frozen, and printing themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EigenResult:
    """Some eigenpairs of a symmetric operator A.

    Attributes:
        values: eigenvalues, ascending, ``[k]``.
        vectors: orthonormal eigenvectors, ``[P, k]``.
        residuals: ‖A v − λ v‖ for each pair, ``[k]``.
        converged: whether every residual is within the tolerance asked for.
        products: how many products with A it took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    products: int

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        lines = [f"{len(self.values)} eigenpairs, {state}, {self.products} products"]
        lines += [
            f"  {float(value):+.6e}  residual {float(residual):.1e}"
            for value, residual in zip(self.values, self.residuals, strict=True)
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class CGResult:
    """The solution of (A + λI) x = b, or how far conjugate gradients came.

    For a block ``b`` ``[P, K]`` each number is a tensor ``[K]``.

    Attributes:
        x: ``[P]``, or ``[P, K]``.
        residual_norm: ‖b − (A + λI) x‖, measured.
        iterations: how many.
        converged: whether ``residual_norm`` is within the tolerance asked for.
        negative_curvature: a unit vector d with dᵀ(A + λI) d ≤ 0 up to rounding, or None. ``x`` is the last
            iterate before it. For a block ``[P, K]``, zero where there is none.
        curvature: dᵀ(A + λI) d; nan where there is no d.
        products: how many products with A it took, K for each block.
    """

    x: Tensor
    residual_norm: float | Tensor
    iterations: int | Tensor
    converged: bool | Tensor
    negative_curvature: Tensor | None
    curvature: float | Tensor
    products: int

    def __str__(self) -> str:
        if self.x.ndim == 1:
            return f"{self._state()}, {self.products} products"
        columns = [
            CGResult(
                x,
                float(residual),
                int(iterations),
                bool(converged),
                None if bool(curvature.isnan()) else x,
                float(curvature),
                0,
            )
            for x, residual, iterations, converged, curvature in zip(
                self.x.unbind(1),
                torch.as_tensor(self.residual_norm),
                torch.as_tensor(self.iterations),
                torch.as_tensor(self.converged),
                torch.as_tensor(self.curvature),
                strict=True,
            )
        ]
        lines = [f"{len(columns)} systems, {self.products} products"]
        lines += [f"  {column._state()}" for column in columns]
        return "\n".join(lines)

    def _state(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        words = f"{state}: residual {self.residual_norm:.1e}, {self.iterations} iterations"
        if self.negative_curvature is not None:
            words += f", negative curvature {self.curvature:+.1e}: more damping is needed"
        elif not self.converged:
            words += "; raise maxiter, damping or tol, or give a preconditioner"
        return words
