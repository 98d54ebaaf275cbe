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


@dataclass(frozen=True)
class Density:
    """The density of the eigenvalues of an operator, broadened by a kernel, and the quadrature it is made of.

    Attributes:
        grid: points, ascending, ``[n]``, float64 as all tensors here.
        density: the density at each, per unit of eigenvalue, ``[n]``; its integral is 1.
        nodes: all probes' quadrature nodes, ascending, ``[q]``.
        weights: their weights averaged over probes, ``[q]``; they add to 1. (1/P) tr f(A) ≈ Σ weights · f(nodes).
        standard_error: of ``density`` over the probes, ``[n]``; inf for one probe.
        moments: (1/P) tr Aᵏ for k = 0 .. 4, ``[5]``.
        moment_errors: their standard errors, ``[5]``.
        width: of the kernel, in units of eigenvalue.
        size: P.
        products: how many products with A it took.
    """

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    standard_error: Tensor
    moments: Tensor
    moment_errors: Tensor
    width: float
    size: int
    products: int

    def __str__(self) -> str:
        first = with_error(self.moments[1], self.moment_errors[1])
        second = with_error(self.moments[2], self.moment_errors[2])
        return "\n".join(
            [
                f"density of {self.size} eigenvalues, {self.products} products, {len(self.nodes)} nodes",
                f"  from {float(self.nodes[0]):+.4e} to {float(self.nodes[-1]):+.4e}, kernel width {self.width:.2e}",
                f"  tr A / P = {first}, tr A² / P = {second}",
            ]
        )


@dataclass(frozen=True)
class ConditionNumber:
    """max|λ| / min|λ| of a symmetric operator, and what it rests on.

    Attributes:
        value: the condition number; inf where the eigenvalue nearest zero cannot be told from it.
        lower: κ is at least so large, up to rounding.
        upper: κ is at most so large if the searches found the ends of the spectrum.
        smallest: the least eigenvalue, the most negative one.
        largest: the greatest eigenvalue.
        kind: "positive definite", "negative definite", "indefinite", "semidefinite" or "zero", and whether it is
            singular to the accuracy reached.
        converged: whether every search reached its tolerance.
        products: how many products with A it took.
    """

    value: float
    lower: float
    upper: float
    smallest: float
    largest: float
    kind: str
    converged: bool
    products: int

    def __str__(self) -> str:
        if self.value == float("inf"):
            number = f"inf, at least {self.lower:.3g}"
        elif self.upper - self.lower > 1e-3 * self.value:
            number = f"{self.value:.4g}, between {self.lower:.4g} and {self.upper:.4g}"
        else:
            number = f"{self.value:.6g}"
        state = "" if self.converged else ", NOT converged"
        return (
            f"condition number {number} ({self.products} products{state})\n"
            f"  eigenvalues from {self.smallest:+.3e} to {self.largest:+.3e}: {self.kind}"
        )
