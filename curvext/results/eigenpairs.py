"""Results of :func:`curvext.eigsh`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvext.plotting import axes_of
from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class EigenResult(Result):
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

    def plot(self, axes: Any = None) -> Any:
        """The eigenvalues, each with a bar as long as its residual, from the largest down.

        Args:
            axes: matplotlib axes to draw on; None for a new figure.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is missing.
        """
        axes = axes_of("EigenResult.plot", axes)
        values, residuals = (
            t.detach().cpu().double().flip(0).numpy() for t in (self.values, self.residuals)
        )
        axes.errorbar(range(1, len(values) + 1), values, yerr=residuals, fmt="o", capsize=3)
        axes.axhline(0, linewidth=0.8, color="gray")
        axes.set_xlabel("number")
        axes.set_ylabel("eigenvalue")
        return axes

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        lines = [f"{len(self.values)} eigenpairs, {state}, {self.products} products"]
        lines += [
            f"  {float(value):+.6e}  residual {float(residual):.1e}"
            for value, residual in zip(self.values, self.residuals, strict=True)
        ]
        return "\n".join(lines)
