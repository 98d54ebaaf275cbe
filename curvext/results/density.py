"""Results of :func:`curvext.spectral_density`."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

from torch import Tensor

from curvext.plotting import axes_of
from curvext.results.estimate import with_error
from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class Density(Result):
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

    def plot(self, axes: Any = None) -> Any:
        """The density over the eigenvalues on a logarithmic axis, with a band of two standard errors.

        The axis ends at a quarter of the height of a single eigenvalue, so that each of them shows.

        Args:
            axes: matplotlib axes to draw on; None for a new figure.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is missing.
        """
        axes = axes_of("Density.plot", axes)
        grid, density, error = (
            t.cpu().numpy() for t in (self.grid, self.density, self.standard_error)
        )
        (line,) = axes.plot(grid, density)
        low = 1 / (4 * self.size * self.width * sqrt(2 * pi))
        if bool(self.standard_error.isfinite().all()):
            lower = (density - 2 * error).clip(min=low / 10)
            axes.fill_between(grid, lower, density + 2 * error, alpha=0.25, color=line.get_color())
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(low, float(self.density.max()) / 10))
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        return axes

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
