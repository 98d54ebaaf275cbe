"""Any other loss, differentiated in output space by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvext.losses.base import LossPoint, OutputLoss, check_reduction

# Torch's own "mean" over elements: their count is the divisor, also when batches differ in length.
_ELEMENTWISE = (
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.KLDivLoss,
)


class CustomLoss(OutputLoss):
    """A callable ``loss(output, target) -> scalar``; residual and H_ℓ by autograd in output space.

    A "mean" is one over the samples, as for any callable, or over the elements, for the torch losses
    that are so defined. For ``nn.NLLLoss`` it is the weighted one of its definition.
    """

    no_likelihood = "a custom loss does not say of which distribution it is −log p"

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], reduction: str | None) -> None:
        declared = getattr(loss, "reduction", None) if reduction is None else reduction
        self.reduction = check_reduction(declared, getattr(loss, "__name__", type(loss).__name__))
        self._loss = loss

    def at(self, output: Tensor, target: Tensor) -> LossPoint:
        divisor = self._divisor(output, target)
        leaf = output.detach().requires_grad_()
        value = self._loss(leaf, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: expected a scalar tensor, got {shape}")
        scale = divisor if self.reduction == "mean" else 1.0
        return _CustomPoint(leaf, value.reshape(()) * scale, divisor)

    def _divisor(self, output: Tensor, target: Tensor) -> float:
        if isinstance(self._loss, _ELEMENTWISE):
            return float(output.numel())
        if isinstance(self._loss, nn.NLLLoss):
            kept = target != self._loss.ignore_index
            if self._loss.weight is None:
                return float(kept.sum())
            return float(self._loss.weight[torch.where(kept, target, 0)][kept].sum())
        return float(output.shape[0])


class _CustomPoint(LossPoint):
    def __init__(self, leaf: Tensor, value: Tensor, divisor: float) -> None:
        self.value = value.detach()
        self.denominator = divisor
        self._leaf = leaf
        self._gradient: Tensor | None = None
        if value.requires_grad:
            (self._gradient,) = torch.autograd.grad(
                value, leaf, create_graph=True, allow_unused=True
            )
        self.residual = (
            torch.zeros_like(leaf) if self._gradient is None else self._gradient.detach()
        )

    def hessian_mm(self, u: Tensor) -> Tensor:
        if self._gradient is None or not self._gradient.requires_grad:  # piecewise linear
            return torch.zeros_like(u)
        columns = []
        for column in u:
            (product,) = torch.autograd.grad(
                self._gradient, self._leaf, column, retain_graph=True, allow_unused=True
            )
            columns.append(torch.zeros_like(column) if product is None else product)
        return torch.stack(columns) if columns else torch.zeros_like(u)
