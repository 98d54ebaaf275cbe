"""Results of :func:`curvext.cg`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from curvext.results.result import Result

#: a tensor, or ``{name: tensor}``
Vector = TypeVar("Vector", bound=Tensor | dict[str, Tensor])


@dataclass(frozen=True, repr=False)
class CGResult(Result, Generic[Vector]):
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

    x: Vector
    residual_norm: float | Tensor
    iterations: int | Tensor
    converged: bool | Tensor
    negative_curvature: Vector | None
    curvature: float | Tensor
    products: int

    def __str__(self) -> str:
        if not isinstance(self.x, Tensor) or self.x.ndim == 1:
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
                torch.as_tensor(self.residual_norm, device=self.x.device),
                torch.as_tensor(self.iterations, device=self.x.device),
                torch.as_tensor(self.converged, device=self.x.device),
                torch.as_tensor(self.curvature, device=self.x.device),
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
            sort = "negative" if float(self.curvature) < 0 else "no"
            words += f", {sort} curvature {self.curvature:+.1e}: more damping is needed"
        elif not self.converged:
            words += "; raise maxiter, damping or tol, or give a preconditioner"
        return words
