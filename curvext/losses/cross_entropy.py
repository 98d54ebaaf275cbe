"""Softmax cross-entropy, as for classifiers and for causal language models.

One file because classifiers and language models differ in how labels meet positions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.kernels.softmax_hessian_mm import softmax_hessian_mm
from curvext.kernels.softmax_residual import softmax_residual
from curvext.kernels.softmax_root_mm import softmax_root_mm
from curvext.kernels.softmax_sample import softmax_sample
from curvext.losses.base import (
    LossPoint,
    OutputLoss,
    RowCurvature,
    check_reduction,
    has_negative,
)
from curvext.losses.causal_lm import CausalLMLoss
from curvext.losses.class_labels import check_classes, check_labels, kept_labels

#: values of a block of root columns that are formed at once
_ROOT_BLOCK = 1 << 22

_OF_TOKENS = (
    "use loss=curvext.CausalLMLoss() for a causal one, which shifts the labels by one. Where they are not shifted "
    "(token classifiers, masked language models, T5, BART), nn.CrossEntropyLoss() is right, with the classes moved to "
    "dimension 1: forward=lambda model, batch: model(**batch).logits.transpose(1, 2)"
)


class SoftmaxCrossEntropy(OutputLoss):
    """ℓ = Σ_m − Σ_c t_mc log p_mc with p = softmax(z) and target mass t.

    Class indices, label smoothing, class weights, ignored positions and probability targets are
    all of this one form. With W_m = Σ_c t_mc the residual is W p − t and the output Hessian
    H_ℓ = W (diag p − p pᵀ), so W is the weight w of the kernels.
    """

    def __init__(
        self,
        reduction: str,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        causal: bool,
    ) -> None:
        self.reduction = reduction
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.causal = causal
        self.own_labels_give_fisher = weight is None and not label_smoothing
        if has_negative(weight):
            self.no_likelihood = (
                "CrossEntropyLoss with a negative class weight is not −log p of any distribution"
            )

    @classmethod
    def from_module(cls, loss: nn.CrossEntropyLoss | CausalLMLoss) -> SoftmaxCrossEntropy:
        """The closed form of a loss module."""
        return cls(
            reduction=check_reduction(loss.reduction, type(loss).__name__),
            weight=getattr(loss, "weight", None),
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            causal=isinstance(loss, CausalLMLoss),
        )

    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        dim = output.ndim - 1 if self.causal else 1
        self._check(output, target, dim)
        if target.is_floating_point():
            return self._at_probabilities(output, target, dim)
        if self.causal:
            target = F.pad(target[:, 1:], (0, 1), value=self.ignore_index)
        return self._at_indices(output, target, dim)

    def _at_indices(self, output: Tensor, target: Tensor, dim: int) -> LossPoint:
        classes = output.shape[dim]
        label, kept = kept_labels(target, self.ignore_index, classes, self._owner)
        work = dtype_of_sums(output.dtype)
        class_weight = None if self.weight is None else self.weight.to(output.device, work)
        label_weight = kept.to(work) if class_weight is None else class_weight[label] * kept
        smoothing = self.label_smoothing
        on_label = label_weight * (1 - smoothing)
        log_p = torch.log_softmax(output.to(work).contiguous(), dim)
        picked = log_p.gather(dim, label.unsqueeze(dim))
        value = -(on_label * picked.squeeze(dim)).sum()
        mass, spread = on_label, None
        if smoothing:
            even = (
                torch.ones(classes, dtype=work, device=output.device)
                if class_weight is None
                else class_weight
            )
            spread = even * (smoothing / classes)
            value = value - (_along(spread, output.ndim, dim) * kept.unsqueeze(dim) * log_p).sum()
            mass = on_label + kept * spread.sum()
        del log_p  # as large as the output
        denominator = float(label_weight.sum(dtype=torch.float64))

        def residual() -> Tensor:
            return softmax_residual(output, label, mass, spread, dim)

        return _SoftmaxPoint(output, dim, value, denominator, residual, mass, kept)

    def _at_probabilities(self, output: Tensor, target: Tensor, dim: int) -> LossPoint:
        classes = output.shape[dim]
        work = dtype_of_sums(output.dtype)
        q = target.to(work)
        if self.label_smoothing:
            q = q * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.weight is not None:
            q = q * _along(self.weight.to(output.device, work), output.ndim, dim)
        log_p = torch.log_softmax(output.to(work), dim)
        value = -(q * log_p).sum()
        mass = q.sum(dim)
        del log_p
        residual = softmax_residual(output.to(work), q, mass, dim=dim)
        return _SoftmaxPoint(
            output,
            dim,
            value,
            float(mass.numel()),
            lambda: residual,  # made at once: q may be the caller's tensor, whose values can change
            mass,
            torch.ones_like(mass, dtype=torch.bool),
        )

    def _check(self, output: Tensor, target: Tensor, dim: int) -> None:
        if self.causal and output.ndim != 3:
            raise ValueError(f"{self._owner}: expected logits [N, T, V], got {list(output.shape)}")
        check_classes(output, target, dim, self.weight, self._owner)
        if target.is_floating_point() and target.shape == output.shape and not self.causal:
            return
        hint = ""
        if not self.causal and output.ndim == 3 and target.shape == output.shape[:2]:
            hint = (
                f". This looks like a language model's [N, T, V] with labels [N, T]; {_OF_TOKENS}"
            )
        check_labels(output, target, dim, self._owner, hint)

    @property
    def _owner(self) -> str:
        return "CausalLMLoss" if self.causal else "CrossEntropyLoss"


class _SoftmaxPoint(LossPoint):
    def __init__(
        self,
        output: Tensor,
        dim: int,
        value: Tensor,
        denominator: float,
        residual: Callable[[], Tensor],
        mass: Tensor,
        kept: Tensor,
    ) -> None:
        self.value = value
        self.denominator = denominator
        self._residual = residual
        self._logits = output
        self._dim = dim
        self._mass = mass
        self._kept = kept

    @cached_property
    def residual(self) -> Tensor:  # type: ignore[override]  # mypy takes it for read-only
        # made when first asked for: it is as large as the output, and products with G do without
        return self._residual().to(self._logits.dtype)

    def hessian_mm(self, u: Tensor) -> Tensor:
        return softmax_hessian_mm(self._logits, u, self._mass, dim=self._dim)

    def row_curvature(self) -> RowCurvature:
        if self._dim != self._logits.ndim - 1:
            return super().row_curvature()
        mass = self._mass.flatten()  # the logits are not held
        return lambda z, u, rows: softmax_hessian_mm(z, u, mass[rows], dim=1)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        if has_negative(self._mass):
            yield from super().root_columns()
            return
        classes = self._logits.shape[self._dim]
        block = max(1, min(classes, _ROOT_BLOCK // max(1, self._logits.numel())))
        for here in self._position_masks():
            for begin in range(0, classes, block):
                count = min(block, classes - begin)
                units = self._logits.new_zeros(count, *self._logits.shape)
                for k in range(count):
                    units[k].select(self._dim, begin + k).fill_(1.0)
                for column in softmax_root_mm(self._logits, units, self._mass * here, self._dim):
                    yield column, 1.0

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        return softmax_sample(self._logits, self._mass, seed, draw, first, self._dim)

    def _position_masks(self) -> Iterator[Tensor]:
        """For each output position a mask over the positions of one sample."""
        per_sample = self._kept[0].numel()
        for t in range(per_sample):
            here = torch.zeros(per_sample, dtype=torch.bool, device=self._kept.device)
            here[t] = True
            yield here.view(self._kept.shape[1:])

    def position_sum(self, x: Tensor) -> Tensor:
        return x.sum(self._dim, keepdim=True)

    def residual_by_position(self) -> Iterator[Tensor]:
        for here in self._position_masks():
            yield self.residual * here.unsqueeze(self._dim - 1)

    @property
    def positions(self) -> int:
        return int(self._kept.sum())


def _along(vector: Tensor, ndim: int, dim: int) -> Tensor:
    """``vector`` [C] shaped to broadcast along dimension ``dim`` of an ``ndim``-dimensional tensor."""
    return vector.view([-1 if d == dim else 1 for d in range(ndim)])
