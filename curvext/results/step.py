"""Results of the steps :func:`curvext.newton_step` and its relatives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvext.results.cg import CGResult
from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class Step(Result):
    """A second-order step s, and the reduction that its quadratic model predicts.

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
        λ = 0 stays zero except in the last case.

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
