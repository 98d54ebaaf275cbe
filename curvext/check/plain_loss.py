"""The user's own loss as PyTorch computes it, and its share of the divisor of the risk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses

from curvext.losses import CausalLMLoss

Loss = Callable[[Tensor, Tensor], Tensor]


class PlainLoss:
    """ℓ = Σ_n ℓ_n from the user's loss, and the divisor of a batch.

    For a loss of PyTorch's the divisor is its sum divided by its mean, at random outputs in float64, so that PyTorch
    itself counts class weights, ignored labels and means over elements. Any other callable takes the mean over
    samples.

    Args:
        loss: as the user gave it.
        reduction: "mean" or "sum".
        wide: whether it meets outputs in float64, and so must hold its tensors in that.
    """

    def __init__(self, loss: Loss, reduction: str, wide: bool = False) -> None:
        self._loss = copy.deepcopy(loss).double() if wide and isinstance(loss, nn.Module) else loss
        self.mean = reduction == "mean"
        self._pair = _mean_and_sum(loss) if self.mean else None

    def __call__(self, output: Tensor, target: Any) -> tuple[Tensor, float]:
        """ℓ of a batch with the graph of ``output``, and the divisor."""
        divisor = self._divisor(output, target) if self.mean else 1.0
        if divisor == 0:  # the mean of an empty set, 0/0 in PyTorch
            return (output * 0).sum(), divisor
        # a copy, because a loss may write to its input
        value = self._loss(output.clone(), target)
        return value.reshape(()) * divisor, divisor

    def _divisor(self, output: Tensor, target: Any) -> float:
        if self._pair is None:
            return float(len(output))
        generator = torch.Generator(device="cpu").manual_seed(0)
        # between 0 and 1, as some losses take probabilities
        anywhere = torch.rand(output.shape, generator=generator, dtype=torch.float64, device="cpu")
        at = anywhere.mul_(0.8).add_(0.1).to(output.device)
        if isinstance(target, Tensor) and target.is_floating_point():
            target = target.double()
        mean, total = (float(f(at, target)) for f in self._pair)
        return 0.0 if mean != mean or total == 0 else total / mean


def _mean_and_sum(loss: Any) -> tuple[Loss, Loss] | None:
    """A loss of PyTorch's in float64 with both reductions, or None for one of the user's own."""
    if getattr(loss, "__module__", None) == "torch.nn.functional":
        return loss, partial(loss, reduction="sum")
    if not isinstance(loss, nn.Module) or not _of_pytorch(loss):
        return None
    mean = copy.deepcopy(loss).double()
    total = copy.deepcopy(mean)
    total.reduction = "sum"  # type: ignore[assignment]
    return mean, total


def _of_pytorch(loss: nn.Module) -> bool:
    """Whether it is a loss of PyTorch's, or CausalLMLoss, which calls one."""
    kind = type(loss)
    own = kind.forward is CausalLMLoss.forward or kind.forward.__module__ == torch_losses.__name__
    return own and kind.__call__ is nn.Module.__call__ and "forward" not in vars(loss)
