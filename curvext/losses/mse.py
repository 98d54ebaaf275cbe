"""Squared error."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.kernels.mse_hessian_mm import mse_hessian_mm
from curvext.kernels.mse_sample import mse_sample
from curvext.losses.base import LossPoint, OutputLoss, check_real, check_reduction, check_same_shape


class SquaredError(OutputLoss):
    """ℓ = Σ (f − y)²: residual 2 (f − y), output Hessian 2 I.

    PyTorch's "mean" divides by the number of elements N·C, so in units of the risk
    H_ℓ = (2/C) I per sample. The likelihood is the Gaussian with −log p = ℓ + const.
    """

    def __init__(self, reduction: str) -> None:
        self.reduction = reduction

    @classmethod
    def from_module(cls, loss: nn.MSELoss) -> SquaredError:
        """The closed form of ``nn.MSELoss``."""
        return cls(check_reduction(loss.reduction, "MSELoss"))

    def own_labels_ratio(self, per_sample: float) -> float:
        return 1.0  # the likelihood is that of L's units: a Gaussian of variance C/2 for a mean over C outputs

    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        check_same_shape(output, target, "MSELoss")
        check_real(target, "MSELoss")
        return _SquaredPoint(output, target.to(output.dtype))


class _SquaredPoint(LossPoint):
    def __init__(self, output: Tensor, target: Tensor) -> None:
        difference = output - target
        wide = dtype_of_sums(output.dtype)
        self.value = difference.to(wide).square().sum()
        self.denominator = float(output.numel())
        self.residual = (2 * difference).contiguous()
        self._output = output
        self._weight = torch.ones((), dtype=wide, device=output.device).expand_as(output)

    def hessian_mm(self, u: Tensor) -> Tensor:
        return mse_hessian_mm(self._output, u, self._weight)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        for j in range(self.residual[0].numel()):
            column = torch.zeros_like(self.residual)
            column.view(len(column), -1)[:, j] = 2**0.5
            yield column, 1.0

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        return mse_sample(self._output, self._weight, seed, draw, first)
