"""Layer norm, with second derivatives in closed form; PyTorch composes them of dozens of elementwise passes.

Two functions: the backward of the first is the second, the vjp (u, x) ↦ (∂h/∂x)ᵀ u, which has a backward of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from curvext.gradients.structured import StructuredGradient
from curvext.operations.alternative import Replaced, runs
from curvext.operations.broadcasting import broadcast, broadcast_gradient
from curvext.operations.flow import At, local
from curvext.operations.node import Node, total
from curvext.operations.operation import Operation, OutputGradient


def normalised_jacobian(
    u: Tensor, x: Tensor, dims: Sequence[int], mean: Tensor, rstd: Tensor
) -> Tensor:
    """K u with K = ∂x̂/∂x = ρ (I − 1 1ᵀ/D − x̂ x̂ᵀ/D) for x̂ = ρ (x − μ), which is symmetric."""
    return torch.ops.aten.native_layer_norm_backward(
        u.contiguous(), x, dims, mean, rstd, None, None, [True, False, False]
    )[0]


class ClosedFormLayerNorm(torch.autograd.Function):
    """y = w x̂ + b over the last dimensions ``dims``; w and b, or b alone, may be None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dims: tuple[int, ...],
        eps: float,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, dims, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.dims = dims
        ctx.biased = bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        return (*_LayerNormVjp.apply(g, x, weight, mean, rstd, ctx.dims, ctx.biased), None, None)


class _LayerNormVjp(torch.autograd.Function):
    """K (w g) by x, Σ g x̂ by w and Σ g by b."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        dims: tuple[int, ...],
        biased: bool,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight, mean, rstd)
        ctx.dims = dims
        ctx.set_materialize_grads(False)
        # the bias of the operation is asked for its shape alone
        wanted = [True, weight is not None, biased]
        by_x, by_weight, by_bias = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), x, dims, mean, rstd, weight, weight if biased else None, wanted
        )
        return by_x, by_weight if weight is not None else None, by_bias if biased else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, u: Tensor | None, s: Tensor | None, t: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, rstd = ctx.saved_tensors
        width = math.prod(ctx.dims)
        rows = mean.numel()
        by_g = torch.empty_like(x, memory_format=torch.contiguous_format)
        by_x = torch.empty_like(by_g)
        by_weight = None if weight is None else torch.zeros_like(weight).view(width)
        w, s, t = (None if a is None else a.reshape(width) for a in (weight, s, t))
        g, x, out_g, out_x = (a.reshape(rows, width) for a in (g, x, by_g, by_x))
        u = None if u is None else u.reshape(rows, width)
        mean, rstd = mean.view(rows, 1), rstd.view(rows, 1)
        for some in runs(rows, width, x.device):
            norm = _Normalised(x[some], mean[some], rstd[some])
            parts = _jacobian_derivatives(norm, g[some], w, None if u is None else u[some], s, t)
            out_g[some], out_x[some], part = parts
            if by_weight is not None and part is not None:
                by_weight += part
        return (
            by_g,
            by_x,
            None if weight is None or by_weight is None else by_weight.view_as(weight),
            *[None] * 4,
        )


class _Normalised:
    """x̂ = ρ (x − μ) of some rows, and its Jacobian K."""

    def __init__(self, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
        self._args = x, [x.shape[1]], mean, rstd
        self.value = (x - mean).mul_(rstd)
        self.rstd = rstd

    def jacobian(self, u: Tensor) -> Tensor:
        return normalised_jacobian(u, *self._args)


def _jacobian_derivatives(
    norm: _Normalised,
    g: Tensor,
    weight: Tensor | None,
    u: Tensor | None,
    s: Tensor | None,
    t: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The derivatives of Φ = ⟨u, K w g⟩ + ⟨s, g x̂⟩ + ⟨t, g⟩ by g, by x, and by w summed over rows."""
    by_g, by_x = torch.zeros_like(g), torch.zeros_like(g)
    by_weight: Tensor | None = None
    if s is not None:
        by_g.addcmul_(norm.value, s)
        by_x += norm.jacobian(g * s)
    if t is not None:
        by_g += t
    if u is not None:
        # from ∂ρ = −ρ² x̂/D and ∂x̂ = K: ∇ ⟨u, K p⟩ = −ρ/D (⟨u, K p⟩ x̂ + ⟨x̂, p⟩ K u + ⟨x̂, u⟩ K p)
        p = g if weight is None else g * weight
        Ku, Kp = norm.jacobian(u), norm.jacobian(p)
        by_g.add_(Ku) if weight is None else by_g.addcmul_(Ku, weight)
        if weight is not None:
            by_weight = torch.linalg.vecdot(g, Ku, dim=0)
        curvature = norm.value * _by_row(u, Kp)
        curvature.addcmul_(Ku, _by_row(norm.value, p)).addcmul_(Kp, _by_row(norm.value, u))
        by_x.addcmul_(curvature, norm.rstd, value=-1 / g.shape[1])
    return by_g, by_x, by_weight


def _by_row(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, y).unsqueeze(-1)


def _closed_form(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    dtypes = {t.dtype for t in (input, weight, bias) if t is not None}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return None
    if input.numel() == 0 or (weight is None and bias is not None):
        return None
    return ClosedFormLayerNorm.apply(input, weight, bias, tuple(normalized_shape), eps)


def layer_norm_in_closed_form() -> Replaced:
    """``layer_norm`` by :class:`ClosedFormLayerNorm`, where it has its dtype and parameters."""
    return Replaced((torch.nn.functional.layer_norm,), _closed_form)


# ---------------------------------------------------------------------- rules


def _weight(at: OutputGradient) -> StructuredGradient | None:
    normed = (at.saved.input - at.saved.result1) * at.saved.result2
    return broadcast_gradient(at, at.g * normed.to(at.g.dtype))


def _tangent(
    node: Node, x: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor | None:
    saved = node.saved
    statistics = saved.result1, saved.result2
    dims, scale = list(saved.normalized_shape), saved.weight
    return _formula(node.shape, (x, weight, bias), saved.input, scale, statistics, dims)


def _closed_form_tangent(
    node: Node, x: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor | None:
    saved, scale, *statistics = node.raw.saved_tensors
    return _formula(node.shape, (x, weight, bias), saved, scale, statistics, node.raw.dims)


def _formula(
    shape: torch.Size,
    inputs: Sequence[Tensor | None],
    saved: Tensor,
    scale: Tensor | None,
    statistics: Sequence[Tensor],
    dims: Sequence[int],
) -> Tensor | None:
    """ẏ = w K ẋ + ẇ x̂ + ḃ."""
    (x, weight, bias), (mean, rstd) = inputs, statistics
    tangent: Tensor | None = None
    if weight is not None:
        # the norm with the tangents in place of weight and bias
        tangent = ((saved - mean) * rstd).mul_(weight)
        if bias is not None:
            tangent += bias
    elif bias is not None:
        tangent = bias.expand(shape)
    if x is None:
        return tangent
    if not x.is_cuda:
        # there statistics are always wider than bfloat16; here only beside wide weights
        x, saved = x.to(mean.dtype), saved.to(mean.dtype)
    by_x = normalised_jacobian(x, saved, dims, mean, rstd)
    if scale is None:
        return total([by_x, tangent], shape)
    return by_x.mul_(scale) if tangent is None else torch.addcmul(tangent, by_x, scale)


def normalized(at: At, ndim: int) -> Sequence[int]:
    return range(ndim - len(at.attribute("normalized_shape")), ndim)


OPERATIONS = {
    "NativeLayerNormBackward0": Operation(
        per_sample={1: _weight, 2: broadcast},
        tangent=_tangent,
        flow=local(normalized),
        alternatives={"twice": layer_norm_in_closed_form},
    ),
    "ClosedFormLayerNormBackward": Operation(tangent=_closed_form_tangent),
}
