"""Binary cross-entropy with logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.kernels.sigmoid_hessian_mm import sigmoid_hessian_mm
from curvext.kernels.sigmoid_sample import sigmoid_sample
from curvext.losses.base import (
    LossPoint,
    OutputLoss,
    check_real,
    check_reduction,
    check_same_shape,
    check_weight,
    has_negative,
)


class BinaryCrossEntropy(OutputLoss):
    """ℓ = Σ w [(1 − y) z + (1 + (π − 1) y) log(1 + e^{−z})], independent Bernoulli outputs.

    w is ``weight``, π is ``pos_weight`` (1 if absent). With κ = w (1 + (π − 1) y) and the
    sigmoid σ: residual w (1 − y) − κ (1 − σ), output Hessian diag(κ σ (1 − σ)).
    "mean" divides by the number of elements.
    """

    def __init__(self, reduction: str, weight: Tensor | None, pos_weight: Tensor | None) -> None:
        self.reduction = reduction
        self.weight = weight
        self.pos_weight = pos_weight
        self.own_labels_give_fisher = weight is None and pos_weight is None
        if pos_weight is not None:
            self.no_likelihood = (
                "BCEWithLogitsLoss with pos_weight is not −log p of any distribution"
            )
        elif has_negative(weight):
            self.no_likelihood = (
                "BCEWithLogitsLoss with a negative weight is not −log p of any distribution"
            )

    @classmethod
    def from_module(cls, loss: nn.BCEWithLogitsLoss) -> BinaryCrossEntropy:
        """The closed form of ``nn.BCEWithLogitsLoss``."""
        return cls(
            check_reduction(loss.reduction, "BCEWithLogitsLoss"), loss.weight, loss.pos_weight
        )

    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        check_same_shape(output, target, "BCEWithLogitsLoss")
        check_real(target, "BCEWithLogitsLoss")
        for name in ("weight", "pos_weight"):
            weight = getattr(self, name)
            if weight is not None:
                fits = _broadcasts(weight.shape, output.shape)
                wanted = f"one that broadcasts to the output {list(output.shape)}"
                check_weight(weight, fits, wanted, "BCEWithLogitsLoss", name)
        return _BinaryPoint(self, output, target)


class _BinaryPoint(LossPoint):
    def __init__(self, loss: BinaryCrossEntropy, output: Tensor, target: Tensor) -> None:
        work = dtype_of_sums(output.dtype)
        z, y = output.to(work), target.to(work)
        weight = None if loss.weight is None else loss.weight.to(z)
        pos_weight = None if loss.pos_weight is None else loss.pos_weight.to(z)
        self.value = F.binary_cross_entropy_with_logits(
            z, y, weight=weight, pos_weight=pos_weight, reduction="sum"
        )
        self.denominator = float(output.numel())
        w = z.new_ones(()).expand_as(z) if weight is None else weight.expand_as(z)
        kappa = w if pos_weight is None else w * (1 + (pos_weight - 1) * y)
        self.residual = (w * (1 - y) - kappa * torch.sigmoid(-z)).to(output.dtype)
        self._logits = output
        self._kappa = kappa

    def hessian_mm(self, u: Tensor) -> Tensor:
        return sigmoid_hessian_mm(self._logits, u, self._kappa)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        curvature = self.hessian_mm(torch.ones_like(self._logits).unsqueeze(0))
        if has_negative(curvature):
            yield from super().root_columns()
            return
        root = curvature.sqrt().view(len(self._logits), -1)
        for j in range(root.shape[1]):
            column = torch.zeros_like(root)
            column[:, j] = root[:, j]
            yield column.view_as(self.residual), 1.0

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        return sigmoid_sample(self._logits, self._kappa, seed, draw, first)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a tensor of ``shape`` expands to ``to``."""
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in sizes)
