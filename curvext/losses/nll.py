"""Negative log-likelihood of log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.losses.base import LossPoint, OutputLoss, check_reduction, has_negative
from curvext.losses.class_labels import check_classes, check_labels, kept_labels
from curvext.losses.cross_entropy import SoftmaxCrossEntropy


class NegativeLogLikelihood(OutputLoss):
    """ℓ = − Σ_m w_m f_m[y_m] of log-probabilities f, w_m the class weight of label y_m: linear in f, so H_ℓ = 0.

    It is −log p by name, and has a Fisher matrix wherever f are log-probabilities, Σ_c exp f_mc = 1. As log_softmax
    leaves such f as they are, ℓ is softmax cross-entropy of them, and

        F = Jᵀ W (diag p − p pᵀ) J,    p = exp f = softmax f,    W_m = w_m,

    with J that of f, log-softmax included: the Fisher matrix of the logits before it. G = Jᵀ H_ℓ J is zero here: f are
    not the natural parameters of p. An output that does not sum to one within rounding is refused by what needs F.
    """

    fisher_is_ggn = False

    def __init__(self, reduction: str, weight: Tensor | None, ignore_index: int) -> None:
        self.reduction = reduction
        self.weight = weight
        self.ignore_index = ignore_index
        self.own_labels_give_fisher = weight is None
        if has_negative(weight):
            self.no_likelihood = (
                "NLLLoss with a negative class weight is not −log p of any distribution"
            )

    @classmethod
    def from_module(cls, loss: nn.NLLLoss) -> NegativeLogLikelihood:
        """The closed form of ``nn.NLLLoss``."""
        return cls(check_reduction(loss.reduction, "NLLLoss"), loss.weight, loss.ignore_index)

    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        check_classes(output, target, 1, self.weight, "NLLLoss")
        check_labels(output, target, 1, "NLLLoss")
        return _NLLPoint(self, output, target)


class _NLLPoint(LossPoint):
    def __init__(self, loss: NegativeLogLikelihood, output: Tensor, target: Tensor) -> None:
        label, kept = kept_labels(target, loss.ignore_index, output.shape[1], "NLLLoss")
        wide = dtype_of_sums(output.dtype)
        weight = None if loss.weight is None else loss.weight.to(output.device, wide)
        weights = (kept.to(wide) if weight is None else weight[label] * kept).unsqueeze(1)
        picked = output.gather(1, label.unsqueeze(1)).to(wide)
        self.value = -(weights * picked).sum()
        self.denominator = float(weights.sum(dtype=torch.float64))
        self.residual = torch.zeros_like(output).scatter_(
            1, label.unsqueeze(1), -weights.to(output.dtype)
        )
        self._loss, self._output, self._target = loss, output, target

    def hessian_mm(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        return iter(())

    def fisher_mm(self, u: Tensor) -> Tensor:
        return self._softmax.hessian_mm(u)

    def fisher_root_columns(self) -> Iterator[tuple[Tensor, float]]:
        return self._softmax.root_columns()

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        return self._softmax.sampled(seed, draw, first)

    @cached_property
    def _softmax(self) -> LossPoint:
        """Softmax cross-entropy at f, which is ℓ because f are log-probabilities."""
        wide = dtype_of_sums(self._output.dtype)
        off = float(self._output.to(wide).logsumexp(1).abs().max())
        # f has been rounded to the dtype of the output
        if not off <= torch.finfo(self._output.dtype).eps ** 0.5:
            raise ValueError(
                f"NLLLoss: the output is no log-probability: |log Σ_c exp f_c| is {off:.2g}, so there is no Fisher "
                "matrix. Let the model end with nn.LogSoftmax(1), or keep its logits and take nn.CrossEntropyLoss()"
            )
        loss = self._loss
        softmax = SoftmaxCrossEntropy(
            loss.reduction, loss.weight, loss.ignore_index, label_smoothing=0.0, causal=False
        )
        return softmax.at(self._output, self._target)
