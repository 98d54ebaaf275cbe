"""Results of :func:`curvext.critical_point`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class CriticalPoint(Result):
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
