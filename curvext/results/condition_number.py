"""Results of :func:`curvext.condition_number`."""

from __future__ import annotations

from dataclasses import dataclass

from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class ConditionNumber(Result):
    """max|λ| / min|λ| of a symmetric operator, with bounds.

    Attributes:
        value: the condition number; inf where the eigenvalue nearest zero cannot be told from it.
        lower: a lower bound of κ, up to rounding.
        upper: an upper bound of κ if the searches found the ends of the spectrum.
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
