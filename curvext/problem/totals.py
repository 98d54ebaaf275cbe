"""The totals of a pass over the data, and the only place that scales sums into means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from curvext.losses import LossPoint, OutputLoss


@dataclass(frozen=True)
class BatchTotals:
    """The contribution of one batch; its value stays on the device, because reading it would synchronise.

    Args:
        samples: N of the batch.
        divisor: its share of the divisor of a mean: samples, positions or weights.
        value: its unnormalised loss.
    """

    samples: int
    divisor: float
    value: Tensor

    @classmethod
    def of(cls, output: Tensor, point: LossPoint) -> BatchTotals:
        """The contribution of a batch whose output is f ``[N, ...]``."""
        return cls(int(output.shape[0]), point.denominator, point.value)


@dataclass(frozen=True)
class Totals:
    """The unnormalised totals of one pass, of this rank or of all.

    Args:
        samples: N.
        divisor: d, the divisor of the mean.
        value: Σ_n ℓ_n, weighted as the loss weights samples.
    """

    samples: int
    divisor: float
    value: float

    @classmethod
    def of(cls, batches: Sequence[BatchTotals]) -> Totals:
        """The sum over batches."""
        return cls(
            sum(b.samples for b in batches),
            sum(b.divisor for b in batches),
            float(sum(b.value for b in batches)),
        )


class Scales(ABC):
    """The factors between unnormalised sums over samples and the quantities of the risk.

    Scales use the totals of the last pass and do not check for later changes.
    """

    loss: OutputLoss

    @property
    @abstractmethod
    def totals(self) -> Totals:
        """The totals of the last pass, of all ranks."""

    def mean_scale(self) -> float:
        """The factor on sums of per-sample curvature or gradients: 1/d for "mean", 1 for "sum"."""
        if self.loss.reduction == "sum":
            return 1.0
        divisor = self.totals.divisor
        if divisor == 0:
            raise ValueError("data: every position is ignored or has weight 0, so the mean is 0/0")
        return 1.0 / divisor

    def sample_scale(self) -> float:
        """c with g_n = c r_n, r_n the gradient of sample n's unnormalised loss: N/d for "mean", 1 for "sum"."""
        return 1.0 if self.loss.reduction == "sum" else self.totals.samples * self.mean_scale()

    def outer_scale(self) -> float:
        """c with F_emp = c Σ_n r_n r_nᵀ: N/d² for "mean", 1 for "sum"."""
        if self.loss.reduction == "sum":
            return 1.0
        return self.totals.samples * self.mean_scale() ** 2
