"""Any other loss, differentiated in output space by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from curvext.losses.base import LossPoint, OutputLoss, check_reduction, computes
from curvext.losses.dependence import check_independent
from curvext.randomness import forbid_rng
from curvext.torch_internals.tensors import version_of

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

#: outputs that are kept of the first batch, to be joined to those of others; one sample at least
_JOINED = 1 << 16


_DREW = (
    "loss: it drew random numbers (dropout, say), so the risk is not a function of the parameters; "
    "switch the randomness off"
)


class CustomLoss(OutputLoss):
    """A callable ``loss(output, target) -> scalar``; residual and H_ℓ by autograd in output space.

    A "mean" is one over the samples, as for any callable, or over the elements, for the torch losses
    that are so defined.

    Two assumptions are tested, as nothing else would show that they fail. Over several batches samples
    of the first are joined to those of each other one: a loss that then gives other residuals is no such
    mean or sum (a weighted mean, a mean of what is not masked, a comparison of samples), the answer
    would depend on the batches, and it is refused. Of one batch its risk is what it computes. What takes
    samples one by one, the exact diagonal of G and the per-sample gradients of F_emp, refuses a loss that
    couples them. Targets that are no tensors, and batches whose shapes do not fit together, are not joined.
    """

    no_likelihood: str = "a custom loss does not say of which distribution it is −log p"

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        reduction: str | None,
        parameters: Mapping[str, Tensor],
    ) -> None:
        declared = getattr(loss, "reduction", None) if reduction is None else reduction
        by_sample = declared == "batchmean" and computes(loss, nn.KLDivLoss)
        declared = "mean" if by_sample else declared
        self.reduction = check_reduction(declared, getattr(loss, "__name__", type(loss).__name__))
        if computes(loss, nn.KLDivLoss):
            self.no_likelihood = (
                "KLDivLoss is linear in its log-probabilities and names no distribution of labels "
                "(nn.CrossEntropyLoss() on the logits takes probabilities as target, differs by a constant, and does)"
            )
        self._loss = loss
        self._elementwise = not by_sample and any(computes(loss, kind) for kind in _ELEMENTWISE)
        #: those to be differentiated, which the loss may read through the output alone
        self._parameters = parameters
        #: the number of the batch that was met first, and samples of it
        self._first: tuple[int, Tensor, Tensor] | None = None
        #: the numbers of the batches that were joined to it without a difference
        self._joined: set[int] = set()
        #: whether samples were found to be apart
        self._apart = False

    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        point = _CustomPoint(self, target, *self._evaluated(output, target))
        if isinstance(target, Tensor) and target.shape[:1] == output.shape[:1]:
            self._check_joined(output, target, batch)
        return point

    def residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂ℓ/∂f alone."""
        leaf, value, _ = self._evaluated(output, target)
        return _derivative(value, leaf, again=False)

    def check_apart(self, point: _CustomPoint) -> None:
        """Raises a ValueError if a sample's residual depends on other samples; looks once, at two or more of them."""
        if self._apart or len(point.residual) < 2:
            return
        so = "it has no gradients of single samples, of which F_emp is made; use H or G"
        with suppress(RuntimeError):  # this loss has no second derivative
            point.check_blocks(so)
        output, residual = point.output, point.residual
        others = output.roll(1, 0)
        number = torch.arange(len(output), device=output.device)
        for bit in range((len(output) - 1).bit_length()):  # of any two samples one stays, one moves
            stays = number >> bit & 1 == 0
            moved = torch.where(stays.view([-1] + [1] * (output.ndim - 1)), output, others)
            now = self.residual(moved, point.target)
            if _differ(now[stays], residual[stays]):
                raise _coupled(so)
        self._apart = True

    def _evaluated(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, float]:
        """The output as a leaf, ℓ with its graph from there, and the divisor."""
        divisor = self._divisor(output, target)
        leaf = output.detach().requires_grad_()
        if self.reduction == "mean" and divisor == 0:
            return leaf, leaf.new_zeros(()), divisor  # torch's mean is 0/0; the risk gets nothing
        version = version_of(target) if isinstance(target, Tensor) else 0
        with forbid_rng(leaf.device, _DREW):
            value = self._loss(leaf.clone(), target)  # it may write to its input, as in training
        if isinstance(target, Tensor) and version_of(target) != version:
            raise ValueError(
                "loss: it writes to its target, so that the data are others at its next call; let it work on a copy, "
                "target.clone()"
            )
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss: expected a scalar tensor, got {shape}")
        check_independent(value, self._parameters, "loss: it reads")
        if not value.requires_grad and float(value) != 0:
            raise ValueError(
                "loss: nothing leads from its value to the output, so that all derivatives would be zero: it uses "
                "argmax, a comparison or NumPy, or under no_grad or detach. Use a loss of differentiable operations"
            )
        scale = divisor if self.reduction == "mean" else 1.0
        return leaf, value.reshape(()) * scale, divisor

    def _divisor(self, output: Tensor, target: Tensor) -> float:
        if self._elementwise:
            return float(output.numel())
        return float(output.shape[0])

    def _check_joined(self, output: Tensor, target: Tensor, batch: int) -> None:
        count = max(1, min(len(output), _JOINED // max(1, output[0].numel())))
        here = (output.detach()[:count], target[:count])
        if self._first is None:
            self._first = (batch, here[0].clone(), here[1].clone())
        number, *first = self._first
        if batch == number or batch in self._joined:
            return
        try:
            joined = [torch.cat(pair) for pair in zip(first, here, strict=True)]
            together = self.residual(*joined)
            alone = torch.cat([self.residual(*first), self.residual(*here)])
        except (RuntimeError, ValueError, IndexError):
            return  # this loss cannot take a part of its batch, or shapes do not fit
        if _differ(together, alone):
            raise ValueError(
                "loss: samples of two batches give other residuals together than apart, so this is no "
                f"{self.reduction} over samples (rather a weighted or masked mean, or a comparison of samples), and "
                "the answer would depend on the batches. Use a loss with a closed form (nn.CrossEntropyLoss has "
                "weight= and ignore_index=), a sum with reduction='sum' that you divide yourself, or all data in one "
                "batch; operators of single batches can be added"
            )
        self._joined.add(batch)


class _CustomPoint(LossPoint):
    def __init__(
        self, loss: CustomLoss, target: Tensor, leaf: Tensor, value: Tensor, divisor: float
    ) -> None:
        self.value = value.detach()
        self.denominator = divisor
        self.target = target
        self._loss = loss
        self._leaf = leaf
        self._gradient = _derivative(value, leaf, again=True)
        self.residual = self._gradient.detach()

    @property
    def output(self) -> Tensor:
        """f."""
        return self._leaf.detach()

    @property
    def residual_by_sample(self) -> Tensor:
        self._loss.check_apart(self)
        return self.residual

    def hessian_mm(self, u: Tensor) -> Tensor:
        if not self._gradient.requires_grad:  # piecewise linear
            return torch.zeros_like(u)
        columns = []
        for column in u:
            (product,) = torch.autograd.grad(
                self._gradient, self._leaf, column, retain_graph=True, allow_unused=True
            )
            columns.append(torch.zeros_like(column) if product is None else product)
        return torch.stack(columns) if columns else torch.zeros_like(u)

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        self.check_blocks(
            "the exact diagonal and trace of G, which are made sample by sample, do not hold; "
            "use curvext.diagonal(G), curvext.trace(G) or G.to_dense()"
        )
        yield from super().root_columns()

    def check_blocks(self, so: str) -> None:
        """Raises a ValueError unless H_ℓ is block-diagonal over samples.

        Then H_ℓ T u = T H_ℓ u with a factor T for each sample.
        """
        samples = len(self.residual)
        if samples == 1:
            return
        generator = torch.Generator("cpu").manual_seed(0)
        u = torch.randn(self.residual.shape, generator=generator, dtype=torch.float64, device="cpu")
        # powers of two change no rounding, so that samples which are apart give equal bits
        order = torch.randperm(samples, generator=generator, device="cpu")
        powers = (torch.arange(samples, device="cpu") % 16 - 8)[order]
        factors = (2.0**powers).to(self.residual).view([-1] + [1] * (self.residual.ndim - 1))
        u = u.to(self.residual)
        apart, together = self.hessian_mm(torch.stack([u, factors * u]))
        if _differ(together, factors * apart):
            raise _coupled(so)


def _derivative(value: Tensor, leaf: Tensor, again: bool) -> Tensor:
    """∂value/∂leaf, with its graph where it is to be differentiated again; zeros where nothing leads there."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=again, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether they differ by more than rounding."""
    allowed = torch.finfo(a.dtype).eps ** 0.5 * b.abs().max()
    return bool((a - b).abs().max() > allowed)


def _coupled(so: str) -> ValueError:
    return ValueError(f"loss: it couples the samples of a batch, so {so}")
