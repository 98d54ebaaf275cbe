"""GELU and layer norm with second derivatives in closed form; PyTorch composes them of dozens of elementwise passes.

Each function h here is a pair: one whose backward is the other, the slope (u, x) ↦ (∂h/∂x)ᵀ u, and that has
a backward too. Rows or elements are taken a cache's worth at a time, as large temporaries cost more than
what is computed on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: elements of each tensor that are worked on at a time on the CPU; a few of them fit its cache
_CHUNK = 1 << 17


def _runs(length: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows of some width."""
    step = max(1, _CHUNK // max(1, width)) if device.type == "cpu" else max(1, length)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class InClosedForm(torch.overrides.TorchFunctionMode):
    """A function of PyTorch by another way to it.

    Args:
        function: the one that is called.
        closed: takes its place; gives None for options that it does not have.
    """

    def __init__(self, function: Callable[..., Any], closed: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self._function = function
        self._closed = closed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is self._function:
            closed = self._closed(*args, **kwargs)
            if closed is not None:
                return closed
        return func(*args, **kwargs)


def _of_one_width(*several: Tensor | None) -> bool:
    """Whether all have one dtype, float32 or float64."""
    dtypes = {t.dtype for t in several if t is not None}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}


# ---------------------------------------------------------------------- GELU


class ClosedFormGelu(torch.autograd.Function):
    """x Φ(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _GeluSlope.apply(g, *ctx.saved_tensors)


class _GeluSlope(torch.autograd.Function):
    """g h'(x) with h' = Φ + x φ, so that h'' = φ (2 − x²)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.gelu_backward(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        out, g, x_flat, u_flat = (t.reshape(-1) for t in (by_x, g, x, u))
        for some in _runs(out.numel(), 1, x.device):
            half = x_flat[some].square().mul_(-0.5)
            density = half.exp()
            half.add_(1).mul_(density).mul_(g[some]).mul_(2 / math.sqrt(2 * math.pi))
            torch.mul(half, u_flat[some], out=out[some])
        return torch.ops.aten.gelu_backward(u, x), by_x


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:
    return ClosedFormGelu.apply(input) if approximate == "none" else None


def gelu_in_closed_form() -> InClosedForm:
    """The exact GELU by :class:`ClosedFormGelu`."""
    return InClosedForm(torch.nn.functional.gelu, _gelu)


# ---------------------------------------------------------------------- layer norm


def normalised_slope(
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
        return (*_LayerNormSlope.apply(g, x, weight, mean, rstd, ctx.dims, ctx.biased), None, None)


class _LayerNormSlope(torch.autograd.Function):
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
        for some in _runs(rows, width, x.device):
            norm = _Normalised(x[some], mean[some], rstd[some])
            parts = _slope_derivatives(norm, g[some], w, None if u is None else u[some], s, t)
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

    def slope(self, u: Tensor) -> Tensor:
        return normalised_slope(u, *self._args)


def _slope_derivatives(
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
        by_x += norm.slope(g * s)
    if t is not None:
        by_g += t
    if u is not None:
        # from ∂ρ = −ρ² x̂/D and ∂x̂ = K: ∇ ⟨u, K p⟩ = −ρ/D (⟨u, K p⟩ x̂ + ⟨x̂, p⟩ K u + ⟨x̂, u⟩ K p)
        p = g if weight is None else g * weight
        moved, back = norm.slope(u), norm.slope(p)
        by_g.add_(moved) if weight is None else by_g.addcmul_(moved, weight)
        if weight is not None:
            by_weight = torch.linalg.vecdot(g, moved, dim=0)
        bent = norm.value * _by_row(u, back)
        bent.addcmul_(moved, _by_row(norm.value, p)).addcmul_(back, _by_row(norm.value, u))
        by_x.addcmul_(bent, norm.rstd, value=-1 / g.shape[1])
    return by_g, by_x, by_weight


def _by_row(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, y).unsqueeze(-1)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if not _of_one_width(input, weight, bias) or (weight is None and bias is not None):
        return None
    if input.numel() == 0:
        return None
    return ClosedFormLayerNorm.apply(input, weight, bias, tuple(normalized_shape), eps)


def layer_norm_in_closed_form() -> InClosedForm:
    """``layer_norm`` by :class:`ClosedFormLayerNorm`, where it has its dtype and parameters."""
    return InClosedForm(torch.nn.functional.layer_norm, _layer_norm)
