"""Results of estimators with random vectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf, log10

from torch import Tensor

from curvext.arguments import as_number
from curvext.results.result import Result
from curvext.student import two_sided_quantile


@dataclass(frozen=True, repr=False)
class Estimate(Result):
    """A quantity estimated from products with random vectors.

    Attributes:
        value: the estimate, a scalar tensor or one of the quantity's shape.
        standard_error: the standard deviation of ``value`` over seeds, as estimated from this one; same shape.
            With many probes about two in three values lie within one of it and nineteen in twenty within two.
            With few it is itself uncertain, and less lies within: see :meth:`interval`.
        products: how many products with A it took.
        degrees_of_freedom: of ``standard_error``: independent samples that it was estimated from, less one;
            inf where the value is exact.
    """

    value: Tensor
    standard_error: Tensor
    products: int
    degrees_of_freedom: float = inf

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends between which the quantity lies with probability ``level``, by Student's t for few probes.

        Exact for normally distributed samples, which those of probes nearly are. At 95 % four probes give ± 3.2
        standard errors, two ± 12.7, and one the whole line from −inf to inf.

        Args:
            level: between 0 and 1, neither included.

        Returns:
            The lower and the upper end, each of the quantity's shape.

        Raises:
            ValueError: ``level`` is not between 0 and 1.

        Source: Student (1908), The probable error of a mean.

        Example:
            >>> import torch, curvext as cx
            >>> few = cx.Estimate(torch.tensor(10.0), torch.tensor(1.0), products=4, degrees_of_freedom=3)
            >>> [round(float(end), 2) for end in few.interval()]
            [6.82, 13.18]
        """
        level = as_number("interval: level", level, "a number between 0 and 1", lambda x: 0 < x < 1)
        if not self.degrees_of_freedom > 0:
            return self.value - inf, self.value + inf
        half = two_sided_quantile(level, self.degrees_of_freedom) * self.standard_error
        return self.value - half, self.value + half

    def __str__(self) -> str:
        if self.value.ndim == 0:
            return f"{with_error(self.value, self.standard_error)} ({self.products} products)"
        shape = list(self.value.shape)
        worst = float(self.standard_error.max()) if self.value.numel() else 0.0
        return f"estimate of shape {shape}, standard errors up to {worst:.2g} ({self.products} products)"


def with_error(value: Tensor | float, error: Tensor | float) -> str:
    """A number with its standard error, both to the digits that the error allows."""
    value, error = float(value), float(error)
    if error == 0:
        return f"{value:.6g} exactly"
    if not 0 < error < float("inf"):
        return f"{value:.4g} ± {error:.4g}"
    # both to the place of the error's second digit
    places = 1 - floor(log10(error))
    digits = max(2, places + 1 + floor(log10(abs(value)))) if value else 2
    return f"{value:.{digits}g} ± {error:.2g}"
