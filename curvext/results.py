"""Results of algorithms: frozen, and printing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10

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
class Estimate:
    """A quantity estimated from products with random vectors.

    Attributes:
        value: the estimate, a scalar tensor or one of the quantity's shape.
        standard_error: the standard deviation of ``value`` over seeds, as estimated from this one; same shape.
            About two in three values lie within one of it, and nineteen in twenty within two.
        products: how many products with A it took.
    """

    value: Tensor
    standard_error: Tensor
    products: int

    def __str__(self) -> str:
        if self.value.ndim == 0:
            return f"{with_error(self.value, self.standard_error)} ({self.products} products)"
        shape = list(self.value.shape)
        worst = float(self.standard_error.max()) if self.value.numel() else 0.0
        return f"estimate of shape {shape}, standard errors up to {worst:.2g} ({self.products} products)"


def with_error(value: Tensor | float, error: Tensor | float) -> str:
    """A number with its standard error, both to the digits that the error leaves."""
    value, error = float(value), float(error)
    if error == 0:
        return f"{value:.6g} exactly"
    if not 0 < error < float("inf"):
        return f"{value:.4g} ± {error:.4g}"
    # both to the place of the error's second digit
    places = 1 - floor(log10(error))
    digits = max(2, places + 1 + floor(log10(abs(value)))) if value else 2
    return f"{value:.{digits}g} ± {error:.2g}"
