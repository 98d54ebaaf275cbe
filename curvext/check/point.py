"""One batch: output and loss with their graphs, and their derivatives by autograd alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from curvext.check.plain_loss import PlainLoss
from curvext.losses import OutputLoss


class Point:
    """f and ℓ of one batch, unnormalised; vectors of parameters are flat ``[P]``, answers in float64.

    Args:
        output: f, with its graph.
        target: y.
        leaves: the parameters.
        loss: the user's.
        first: index of the batch's first sample.
    """

    def __init__(
        self, output: Tensor, target: Any, leaves: Sequence[Tensor], loss: PlainLoss, first: int
    ) -> None:
        self.output = output
        self.first = first
        self.samples = len(output)
        self._target = target
        self._leaves = leaves
        self._loss = loss
        self.value, self.divisor = loss(output, target)

    # ------------------------------------------------------------------ in parameter space

    def gradient(self) -> Tensor:
        """∇ℓ, by one backward pass through loss and network."""
        return self._flat(self._grad(self.value))

    def hessian_product(self, v: Tensor) -> Tensor:
        """∇(∇ℓ · v)."""
        return self._derivative_along(self._first, v)

    def model_curvature_product(self, v: Tensor) -> Tensor:
        """∇(∇⟨residual, f⟩ · v) with the residual held fixed."""
        return self._derivative_along(self._first_of_model, v)

    def sample_gradient(self, n: int) -> Tensor:
        """Jᵀ of the residual, zero but for sample n."""
        alone = torch.zeros_like(self.output)
        alone[n] = self.residual.detach()[n]
        return self.pull(alone)

    def pull(self, u: Tensor) -> Tensor:
        """Jᵀ u for u like the output."""
        if not self.output.requires_grad:
            return self._flat([None] * len(self._leaves))
        return self._flat(self._grad(self.output, u))

    # ------------------------------------------------------------------ in output space

    def push(self, v: Tensor) -> Tensor:
        """J v, the derivative of ⟨Jᵀ u, v⟩ by u."""
        if not self.output.requires_grad:
            return torch.zeros_like(self.output)
        u, pulled = self._pulled
        inner = _inner(pulled, self._blocks(v))
        if inner is None:
            return torch.zeros_like(self.output)
        (tangent,) = torch.autograd.grad(inner, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self.output) if tangent is None else tangent

    @cached_property
    def _leaf(self) -> Tensor:
        return self.output.detach().requires_grad_()

    @cached_property
    def residual(self) -> Tensor:
        """∂ℓ/∂f, with its graph in output space."""
        value, _ = self._loss(self._leaf, self._target)
        if not value.requires_grad:
            return torch.zeros_like(self._leaf)
        (residual,) = torch.autograd.grad(value, self._leaf, create_graph=True, allow_unused=True)
        return torch.zeros_like(self._leaf) if residual is None else residual

    def residual_of_others(self) -> Tensor | None:
        """∂ℓ/∂f at targets shifted by one sample; None where the loss does not accept them."""
        if not isinstance(self._target, Tensor) or self._target.ndim == 0:
            return None
        other = Point(self._leaf.detach(), self._target.roll(1, 0), [], self._loss, self.first)
        return other.residual.detach()

    def output_hessians(self) -> tuple[Tensor, Tensor]:
        """H_ℓ u for a random u, and the same at outputs of unit size, where a softmax is not saturated."""
        u = _random_like(self.output)
        size = self.output.detach().double().square().mean().sqrt().clamp(min=1).to(u)
        other = Point(self._leaf.detach() / size, self._target, [], self._loss, self.first)
        return self.output_hessian(u), other.output_hessian(u)

    def output_hessian(self, u: Tensor) -> Tensor:
        """H_ℓ u = ∂⟨∂ℓ/∂f, u⟩/∂f."""
        if not self.residual.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(
            self.residual, self._leaf, u, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(u) if product is None else product

    def scores(self, draws: OutputLoss) -> Tensor:
        """∂(−log p)/∂f at the labels that the library draws for seed 0."""
        return draws.at(self.output.detach(), self._target).sampled(0, 0, self.first)

    def expected_outer(self, tangent: Tensor) -> Tensor:
        """Σ_c p_c s_c ⟨s_c, tangent⟩ at log-probabilities f = log p, with s_c = √W e_c; W of ℓ is −Σ_c ∂ℓ/∂f_c."""
        weight = -self.residual.detach().sum(1, keepdim=True)
        return weight * self.output.detach().exp() * tangent

    def slopes(self, residual: Tensor, tangent: Tensor) -> Tensor:
        """⟨residual_n, tangent_n⟩ for each sample, ``[N]`` in float64."""
        return (residual.double() * tangent.double()).reshape(self.samples, -1).sum(1)

    def outer(self, residual: Tensor, tangent: Tensor) -> Tensor:
        """residual_n ⟨residual_n, tangent_n⟩, like the output."""
        slopes = self.slopes(residual, tangent).to(residual.dtype)
        return residual * slopes.view([-1] + [1] * (residual.ndim - 1))

    # ------------------------------------------------------------------ graphs and forms

    @cached_property
    def _first(self) -> list[Tensor | None]:
        return self._grad(self.value, again=True)

    @cached_property
    def _first_of_model(self) -> list[Tensor | None]:
        return self._grad(self.output, self.residual.detach(), again=True)

    @cached_property
    def _pulled(self) -> tuple[Tensor, list[Tensor | None]]:
        # any u but zero, because Jᵀ u is linear in it and some formulas take its logarithm
        u = _random_like(self.output).requires_grad_()
        return u, self._grad(self.output, u, again=True)

    def _grad(
        self, of: Tensor, cotangent: Tensor | None = None, again: bool = False
    ) -> list[Tensor | None]:
        """The derivative with respect to every parameter; None for one that the output does not depend on."""
        if not of.requires_grad:
            return [None] * len(self._leaves)
        return list(
            torch.autograd.grad(
                of,
                self._leaves,
                cotangent,
                retain_graph=True,
                create_graph=again,
                allow_unused=True,
            )
        )

    def _derivative_along(self, first: list[Tensor | None], v: Tensor) -> Tensor:
        inner = _inner(first, self._blocks(v))
        nothing: list[Tensor | None] = [None] * len(self._leaves)
        return self._flat(nothing if inner is None else self._grad(inner))

    def _blocks(self, v: Tensor) -> list[Tensor]:
        parts = v.split([p.numel() for p in self._leaves])
        return [part.view(p.shape).to(p) for part, p in zip(parts, self._leaves, strict=True)]

    def _flat(self, parts: list[Tensor | None]) -> Tensor:
        pairs = zip(parts, self._leaves, strict=True)
        dense = [torch.zeros_like(p) if g is None else g.detach().to_dense() for g, p in pairs]
        return torch.cat([g.reshape(-1).double() for g in dense])


def _inner(parts: list[Tensor | None], blocks: list[Tensor]) -> Tensor | None:
    """Σ ⟨part, block⟩ over the parts that have a graph; None if there are none."""
    pairs = zip(parts, blocks, strict=True)
    terms = [(g * b).sum() for g, b in pairs if g is not None and g.requires_grad]
    return torch.stack(terms).sum() if terms else None


def _random_like(t: Tensor) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").to(t)
