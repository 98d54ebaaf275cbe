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


@dataclass(frozen=True)
class CriticalPoint:
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


@dataclass(frozen=True)
class Step:
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
    cg: CGResult | None

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
