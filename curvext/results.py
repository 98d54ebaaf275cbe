"""Results of algorithms: frozen, and printing themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, inf, log10, pi, sqrt
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from curvext.arguments import as_number
from curvext.plotting import axes_of
from curvext.student import two_sided_quantile

#: a tensor, or ``{name: tensor}``
Vector = TypeVar("Vector", bound=Tensor | dict[str, Tensor])

#: tensors and lists of more entries are shown by their shape
_SHOWN = 6


class _Result:
    """A frozen dataclass with a short repr; ``str`` is the long one, in words."""

    def __repr__(self) -> str:
        parts = [f"{name}={_short(value)}" for name, value in vars(self).items()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: object) -> str:
    """A value on part of a line: tensors of some entries by these, longer ones by their shape."""
    if isinstance(value, Tensor):
        if value.ndim < 2 and value.numel() <= _SHOWN:
            numbers = [f"{x:.5g}" for x in value.detach().reshape(-1).tolist()]
            return numbers[0] if value.ndim == 0 else f"[{', '.join(numbers)}]"
        return f"<{str(value.dtype).removeprefix('torch.')} {list(value.shape)}>"
    if isinstance(value, tuple) or (isinstance(value, dict) and len(value) > _SHOWN):
        return f"<{len(value)}>"
    if isinstance(value, dict):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, str) and len(value) > 40:
        return repr(value[:37] + "...")
    return repr(value)


@dataclass(frozen=True, repr=False)
class EigenResult(_Result):
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


@dataclass(frozen=True, repr=False)
class CGResult(_Result, Generic[Vector]):
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


@dataclass(frozen=True, repr=False)
class CriticalPoint(_Result):
    """What kind of point the parameters are at.

    Attributes:
        verdict: "minimum", "maximum", "saddle", "degenerate" or "not critical".
        gradient_norm: ‖∇L‖.
        smallest: the smallest eigenvalue of H, most negative where there is one.
        largest: the largest.
        condition_number: max|λ| / min|λ|: how narrow the valley is. inf where an eigenvalue counts as
            zero; nan where that of least magnitude lies inside of a spectrum known by its ends alone.
        negative_share: Σ|λ| of the negative eigenvalues over that of all; estimated unless ``exact``,
            nan without probes.
        negative_fraction: their number over P, likewise.
        gradient_tolerance: up to this ‖∇L‖ counts as zero.
        zero: up to this |λ| counts as zero.
        smallest_error: an eigenvalue lies within this of ``smallest``.
        largest_error: likewise.
        direction: unit eigenvector ``[P]`` of ``smallest``, the way out of a saddle.
        exact: whether every eigenvalue was computed.
        converged: whether Lanczos has; True where ``exact``.
        products: how many products with H it took.
        evidence: what the verdict rests on, in words.
    """

    verdict: str
    gradient_norm: float
    smallest: float
    largest: float
    condition_number: float
    negative_share: float
    negative_fraction: float
    gradient_tolerance: float
    zero: float
    smallest_error: float
    largest_error: float
    direction: Tensor
    exact: bool
    converged: bool
    products: int
    evidence: str

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        lines = [
            f"{self.verdict}: {self.evidence}",
            f"  gradient norm {self.gradient_norm:.2e}, zero up to {self.gradient_tolerance:.1e}",
            f"  smallest eigenvalue {self.smallest:+.3e} ± {self.smallest_error:.0e}",
            f"  largest eigenvalue {self.largest:+.3e} ± {self.largest_error:.0e}",
            f"  condition number {self.condition_number:.2e}",
            f"  negative: {about}{self.negative_fraction:.1%} of the eigenvalues, "
            f"{about}{self.negative_share:.1%} of the curvature",
        ]
        return "\n".join(lines + ([] if self.converged else ["  Lanczos has NOT converged"]))


@dataclass(frozen=True, repr=False)
class Step(_Result):
    """A second-order step s, and what its quadratic model promises.

    Attributes:
        step: s, ``[P]``; :func:`curvext.take_step` moves a model by it.
        damping: the λ it was computed with.
        predicted_reduction: −(∇Lᵀs + ½ sᵀB s), B the curvature matrix without λ.
        value: L where the step starts.
        cg: how conjugate gradients went; None where the system was solved otherwise.
    """

    step: Tensor
    damping: float
    predicted_reduction: float
    value: float
    cg: CGResult[Tensor] | None

    def ratio(self, new_value: float) -> float:
        """The reduction of the loss over the one predicted: 1 where the model is right."""
        if self.predicted_reduction == 0:
            return float("nan")
        return (self.value - new_value) / self.predicted_reduction

    def next_damping(self, new_value: float) -> float:
        """λ for the next step, by Levenberg's and Marquardt's rule, from the loss after this one.

        Where the loss fell by less than a quarter of what was predicted, rose or is no number: 3/2 λ;
        by more than three quarters: 2/3 λ. Where negative curvature κ was met it is at least λ − 3/2 κ.
        λ = 0 stays zero but for the last.

        Source: Martens (2010), section 4.1.
        """
        ratio = self.ratio(new_value)
        factor = 2 / 3 if ratio > 3 / 4 else 1.0 if ratio >= 1 / 4 else 3 / 2
        damping = factor * self.damping
        if self.cg is not None and self.cg.negative_curvature is not None:
            damping = max(3 / 2 * self.damping, self.damping - 3 / 2 * float(self.cg.curvature))
        return damping

    def __str__(self) -> str:
        how = "" if self.cg is None else f"; conjugate gradients {self.cg}"
        return (
            f"step of length {float(self.step.norm()):.2e}, predicted reduction "
            f"{self.predicted_reduction:.2e}, damping {self.damping:.1e}{how}"
        )


@dataclass(frozen=True, repr=False)
class Estimate(_Result):
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

        Exact for samples from a normal distribution, of which few probes' are nearly ones; four probes give
        ± 3.2 standard errors at 95 %, two ± 12.7, one says nothing: from −inf to inf.

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


@dataclass(frozen=True, repr=False)
class Density(_Result):
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


@dataclass(frozen=True, repr=False)
class ConditionNumber(_Result):
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


@dataclass(frozen=True, repr=False)
class Equality(_Result):
    """A claim that two curvature matrices are equal, and what was found of it at one point.

    Attributes:
        claim: as "H = G".
        holds: to rounding; None where one of the two is not to be had.
        near: the distance is small, its error included.
        gap: the relative distance in units of the second, or None.
        why: the reason.
    """

    claim: str
    holds: bool | None
    near: bool
    gap: Estimate | None
    why: str

    def __str__(self) -> str:
        if self.holds is None:
            return f"{self.claim} is not defined: {self.why}"
        state = "holds" if self.holds else "nearly holds" if self.near else "does not hold"
        return f"{self.claim} {state}: {self.why}"


@dataclass(frozen=True, repr=False)
class Comparison(_Result):
    """The curvature matrices of one risk at one point: H, G, F, F_mc and F_emp, those that there are.

    Attributes:
        size: P.
        value: L.
        gradient_norm: ‖∇L‖.
        traces: by matrix.
        norms: Frobenius norms, by matrix.
        eigenvalues: the leading ones by matrix, largest in magnitude first, without those that are zero.
        eigenvalue_errors: an eigenvalue lies within this of each; 0 where the matrix was formed.
        distances: ``[a, b]`` is ‖A − B‖/‖B‖.
        overlaps: ``[a, b]`` is the mean squared cosine between the leading eigenspaces; nan where there is none.
        equalities: what theory says of pairs, and whether it holds here.
        refused: why a matrix is missing.
        densities: spectral densities, by matrix, where they were asked for.
        products: how many products it took in all, densities not counted.
    """

    size: int
    value: float
    gradient_norm: float
    traces: dict[str, Estimate]
    norms: dict[str, Estimate]
    eigenvalues: dict[str, Tensor]
    eigenvalue_errors: dict[str, Tensor]
    distances: dict[tuple[str, str], Estimate]
    overlaps: dict[tuple[str, str], float]
    equalities: tuple[Equality, ...]
    refused: dict[str, str]
    densities: dict[str, Density]
    products: int

    def __str__(self) -> str:
        names = list(self.traces)

        def number(estimate: Estimate) -> str:
            value, error = float(estimate.value), float(estimate.standard_error)
            return with_error(value, error) if error else f"{value:.4g}"

        def pairs(cell: Callable[[str, str], str]) -> list[list[str]]:
            return [["", *names]] + [
                [a, *("" if a == b else cell(a, b) for b in names)] for a in names
            ]

        count = max((len(v) for v in self.eigenvalues.values()), default=0)
        figures = [["matrix", "trace", "Frobenius norm", "leading eigenvalues"]] + [
            [
                n,
                number(self.traces[n]),
                number(self.norms[n]),
                "  ".join(f"{v:.3g}" for v in self.eigenvalues[n].tolist()[:3]),
            ]
            for n in names
        ]
        lines = [
            f"P = {self.size}, L = {self.value:.6g}, ‖∇L‖ = {self.gradient_norm:.2e}; {self.products} products",
            "",
            *_table(figures),
            "",
            "‖row − column‖ / ‖column‖",
            *_table(pairs(lambda a, b: number(self.distances[a, b]))),
            "",
            f"overlap of the {count} leading eigenvectors (chance: {count / max(1, self.size):.2g})",
            *_table(pairs(lambda a, b: f"{self.overlaps[a, b]:.3f}")),
            "",
        ]
        lines += [str(e) for e in self.equalities]
        lines += [f"no {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    """Rows in columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
