"""J v, Jᵀ u and second derivatives on a kept graph: the network runs once, products follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvext.linearise.autograd_graph import saved_bytes
from curvext.losses import LossPoint


class _OutputCurvature:
    """What the residual's derivative is taken to be: H_ℓ, or nothing (for the model-curvature term)."""

    def __init__(self, point: LossPoint) -> None:
        self.point = point
        self.active = True


class _Residual(torch.autograd.Function):
    """r(f) = ∂ℓ/∂f as a function of the output, with the kernel H_ℓ u as its derivative.

    It puts the closed-form output Hessian into the middle of PyTorch's double backward, so that
    H v = Jᵀ H_ℓ J v + Σ_c r_c ∂²f_c v comes out of one pass, its first part by the kernel.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, curvature: _OutputCurvature) -> Tensor:
        ctx.curvature = curvature
        return curvature.point.residual.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.curvature.active:
            return None, None
        return ctx.curvature.point.hessian_mm(u.unsqueeze(0)).squeeze(0), None


class Linearisation:
    """One batch at fixed parameters: output f, its Jacobian J, and the gradient's own graph.

    The first backward pass is kept with its graph, w = Jᵀ r. Differentiating w by r gives J v
    (w is linear in r), differentiating it by θ gives the second derivatives; both cost one pass.

    Args:
        output: f with its graph, ``[N, ...]``.
        point: the loss at f.
        parameters: the leaves θ.
        first: index of the batch's first datum among all.
    """

    def __init__(
        self, output: Tensor, point: LossPoint, parameters: Sequence[Tensor], first: int
    ) -> None:
        self.point = point
        self.first = first
        self.samples = int(output.shape[0])
        self._output = output
        self._parameters = list(parameters)
        self._curvature = _OutputCurvature(point)
        self._gradient: list[Tensor | None] = [None] * len(self._parameters)
        if output.requires_grad:
            self._residual = _Residual.apply(output, self._curvature)
            self._gradient = list(
                torch.autograd.grad(
                    output,
                    self._parameters,
                    self._residual,
                    create_graph=True,
                    allow_unused=True,
                )
            )
        # only these are differentiated again; a gradient that r does not reach is constant
        live = [(i, w) for i, w in enumerate(self._gradient) if w is not None and w.requires_grad]
        self._live = [i for i, _ in live]
        self._live_gradient = [w for _, w in live]

    @property
    def gradient(self) -> list[Tensor]:
        """∇ℓ per parameter, unnormalised, without graph."""
        return [
            torch.zeros_like(p) if w is None else _dense(w.detach())
            for w, p in zip(self._gradient, self._parameters, strict=True)
        ]

    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        """J v in the shape of the output; ``v`` has one tensor per parameter."""
        if not self._live:
            return torch.zeros_like(self._output)
        (product,) = torch.autograd.grad(
            self._live_gradient,
            self._residual,
            [v[i] for i in self._live],
            retain_graph=True,
            allow_unused=True,
        )
        return torch.zeros_like(self._output) if product is None else product

    def vjp(self, u: Tensor) -> list[Tensor]:
        """Jᵀ u per parameter; ``u`` has the shape of the output."""
        if not self._output.requires_grad:
            return [torch.zeros_like(p) for p in self._parameters]
        products = torch.autograd.grad(
            self._output, self._parameters, u, retain_graph=True, allow_unused=True
        )
        return self._filled(products)

    def hvp(self, v: Sequence[Tensor]) -> list[Tensor]:
        """∂²ℓ/∂θ² v per parameter: the kernel's part and the model's curvature in one pass."""
        return self._second(v, active=True)

    def model_curvature_vp(self, v: Sequence[Tensor]) -> list[Tensor]:
        """Σ_c r_c ∂²f_c/∂θ² v per parameter: the same pass with the residual held fixed."""
        return self._second(v, active=False)

    def _second(self, v: Sequence[Tensor], active: bool) -> list[Tensor]:
        if not self._live:
            return [torch.zeros_like(p) for p in self._parameters]
        self._curvature.active = active
        products = torch.autograd.grad(
            self._live_gradient,
            self._parameters,
            [v[i] for i in self._live],
            retain_graph=True,
            allow_unused=True,
        )
        return self._filled(products)

    def _filled(self, products: Sequence[Tensor | None]) -> list[Tensor]:
        """Zeros for the parameters that nothing reached."""
        return [
            torch.zeros_like(p) if g is None else _dense(g)
            for g, p in zip(products, self._parameters, strict=True)
        ]

    def nbytes(self) -> int:
        """Bytes that keeping this linearisation costs."""
        from_gradient = [
            w.grad_fn for w in self._gradient if w is not None and w.grad_fn is not None
        ]
        return saved_bytes(_reachable(from_gradient)) + sum(
            w.numel() * w.element_size() for w in self._gradient if w is not None
        )


def _reachable(roots: Sequence[Any]) -> list[Any]:
    seen: set[Any] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(child for child, _ in node.next_functions if child is not None)
    return list(seen)


def _dense(t: Tensor) -> Tensor:
    return t.to_dense() if t.is_sparse else t
