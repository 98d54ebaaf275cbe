"""Softmax cross-entropy, as for classifiers and for causal language models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvext.kernels.softmax_hessian_mm import softmax_hessian_mm
from curvext.losses.base import LossPoint, OutputLoss, RowCurvature, check_reduction
from curvext.losses.draws import uniform


class CausalLMLoss(nn.Module):
    """Next-token cross-entropy of a language model's logits ``[N, T, V]`` and labels ``[N, T]``.

        ℓ = − Σ_n Σ_{t<T-1} log softmax(z_{n,t})[y_{n,t+1}]

    The labels are shifted here, as Hugging Face models do it, so logits and labels come unshifted.
    "mean" divides by the number of labels that are not ignored.

    Args:
        ignore_index: labels of this value do not count.
        reduction: "mean" or "sum".
        label_smoothing: as in ``nn.CrossEntropyLoss``.

    Example:
        >>> import torch, curvext as cx
        >>> loss = cx.CausalLMLoss()
        >>> round(loss(torch.zeros(2, 5, 7), torch.ones(2, 5, dtype=torch.long)).item(), 4)
        1.9459
    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction, "CausalLMLoss")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss as PyTorch computes it, differentiable."""
        return F.cross_entropy(
            logits[:, :-1].transpose(1, 2),
            labels[:, 1:],
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class SoftmaxCrossEntropy(OutputLoss):
    """ℓ = Σ_m − Σ_c t_mc log p_mc with p = softmax(z) and target mass t ≥ 0.

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

    def at(self, output: Tensor, target: Tensor) -> LossPoint:
        dim = output.ndim - 1 if self.causal else 1
        self._check(output, target, dim)
        if target.is_floating_point():
            return self._at_probabilities(output, target, dim)
        if self.causal:
            target = F.pad(target[:, 1:], (0, 1), value=self.ignore_index)
        return self._at_indices(output, target, dim)

    def _at_indices(self, output: Tensor, target: Tensor, dim: int) -> LossPoint:
        classes = output.shape[dim]
        kept = target != self.ignore_index
        label = torch.where(kept, target, 0).long()  # a uint8 index would be read as a mask
        if kept.any() and not bool(((label >= 0) & (label < classes)).all()):
            raise ValueError(
                f"CrossEntropyLoss: target has labels {int(label.min())}..{int(label.max())}, "
                f"the output has {classes} classes"
            )
        work = _accumulation_dtype(output)
        class_weight = None if self.weight is None else self.weight.to(output.device, work)
        label_weight = kept.to(work) if class_weight is None else class_weight[label] * kept
        smoothing = self.label_smoothing
        on_label = label_weight * (1 - smoothing)
        log_p = torch.log_softmax(output.to(work).contiguous(), dim)
        picked = log_p.gather(dim, label.unsqueeze(dim))
        value = -(on_label * picked.squeeze(dim)).sum()
        mass = on_label
        spread = None
        if smoothing:
            even = (
                torch.ones(classes, dtype=work, device=output.device)
                if class_weight is None
                else class_weight
            )
            spread = _along(even * (smoothing / classes), output.ndim, dim) * kept.unsqueeze(dim)
            value = value - (spread * log_p).sum()
            mass = on_label + kept * (even.sum() * (smoothing / classes))
        residual = log_p.exp_().mul_(mass.unsqueeze(dim))
        _subtract_at(residual, dim, label, on_label)
        if spread is not None:
            residual -= spread
        return _SoftmaxPoint(
            output, dim, value, float(label_weight.sum(dtype=torch.float64)), residual, mass, kept
        )

    def _at_probabilities(self, output: Tensor, target: Tensor, dim: int) -> LossPoint:
        classes = output.shape[dim]
        work = _accumulation_dtype(output)
        q = target.to(work)
        if self.label_smoothing:
            q = q * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.weight is not None:
            q = q * _along(self.weight.to(output.device, work), output.ndim, dim)
        log_p = torch.log_softmax(output.to(work), dim)
        value = -(q * log_p).sum()
        mass = q.sum(dim)
        residual = log_p.exp_().mul_(mass.unsqueeze(dim)).sub_(q)
        return _SoftmaxPoint(
            output,
            dim,
            value,
            float(mass.numel()),
            residual,
            mass,
            torch.ones_like(mass, dtype=torch.bool),
        )

    def _check(self, output: Tensor, target: Tensor, dim: int) -> None:
        name = "CausalLMLoss" if self.causal else "CrossEntropyLoss"
        if not isinstance(target, Tensor):
            raise TypeError(f"{name}: expected a tensor as target, got {type(target).__name__}")
        if self.causal and output.ndim != 3:
            raise ValueError(f"{name}: expected logits [N, T, V], got {list(output.shape)}")
        if output.ndim < 2:
            raise ValueError(f"{name}: expected an output [N, C, ...], got {list(output.shape)}")
        per_position = output.shape[:dim] + output.shape[dim + 1 :]
        if target.is_floating_point() and target.shape == output.shape and not self.causal:
            return
        if target.shape == per_position:
            if target.dtype not in (torch.int64, torch.uint8):
                raise TypeError(f"{name}: target has dtype {target.dtype}; class indices are int64")
            return
        hint = ""
        if not self.causal and output.ndim == 3 and target.shape == output.shape[:2]:
            hint = (
                ". This looks like a language model's [N, T, V] with labels [N, T]; "
                "use loss=curvext.CausalLMLoss(), or forward= to move the classes to dimension 1"
            )
        raise ValueError(
            f"{name}: output {list(output.shape)} wants a target {list(per_position)} of class indices, "
            f"got {list(target.shape)} {target.dtype}{hint}"
        )


class _SoftmaxPoint(LossPoint):
    def __init__(
        self,
        output: Tensor,
        dim: int,
        value: Tensor,
        denominator: float,
        residual: Tensor,
        mass: Tensor,
        kept: Tensor,
    ) -> None:
        self.value = value
        self.denominator = denominator
        self.residual = residual.to(output.dtype)
        self._logits = output
        self._dim = dim
        self._mass = mass
        self._kept = kept

    def hessian_mm(self, u: Tensor) -> Tensor:
        return softmax_hessian_mm(self._logits, u, self._mass, dim=self._dim)

    def row_curvature(self) -> RowCurvature:
        if self._dim != self._logits.ndim - 1:
            return super().row_curvature()
        mass = self._mass.flatten()  # the logits are not held
        return lambda z, u, rows: softmax_hessian_mm(z, u, mass[rows], dim=1)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        p = torch.softmax(self._logits.to(self._mass.dtype), self._dim)
        for here in self._position_masks():
            weight = (self._mass * here).unsqueeze(self._dim)
            for c in range(p.shape[self._dim]):
                root = (weight * p.select(self._dim, c).unsqueeze(self._dim)).sqrt()
                column = -root * p
                column.select(self._dim, c).add_(root.squeeze(self._dim))
                yield column.to(self.residual.dtype), 1.0

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        p = torch.softmax(self._logits.to(self._mass.dtype), self._dim).movedim(self._dim, -1)
        samples, positions = p.shape[0], self._mass[0].numel()
        u = uniform(seed, draw, first, samples, positions, p.device).view(*self._mass.shape, 1)
        cumulative = p.double().cumsum(-1)
        label = torch.searchsorted(cumulative, u * cumulative[..., -1:]).clamp(max=p.shape[-1] - 1)
        score = p.scatter_add(-1, label, -torch.ones_like(label, dtype=p.dtype))
        score = score * self._mass.sqrt().unsqueeze(-1)
        return score.movedim(-1, self._dim).to(self.residual.dtype)

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


def _subtract_at(x: Tensor, dim: int, label: Tensor, amount: Tensor) -> None:
    """x[..., label, ...] −= amount along ``dim`` of a contiguous x; many times faster than scatter_add_."""
    inner = x.shape[dim + 1 :].numel()
    position = torch.arange(label.numel(), device=x.device)
    offset = (position // inner * x.shape[dim] + label.flatten()) * inner + position % inner
    x.view(-1).index_add_(0, offset, amount.flatten(), alpha=-1)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _along(vector: Tensor, ndim: int, dim: int) -> Tensor:
    """``vector`` [C] shaped to broadcast along dimension ``dim`` of an ``ndim``-dimensional tensor."""
    return vector.view([-1 if d == dim else 1 for d in range(ndim)])
