"""GELU, with second derivatives in closed form; PyTorch composes them of many elementwise passes.

Two functions: the backward of the first is the second, the vjp (u, x) ↦ h'(x) u, which has a backward of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from curvext.operations.alternative import Replaced, runs
from curvext.operations.flow import elementwise
from curvext.operations.node import Node, symmetric
from curvext.operations.operation import Operation


class ClosedFormGelu(torch.autograd.Function):
    """x Φ(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _GeluVjp.apply(g, *ctx.saved_tensors)


class _GeluVjp(torch.autograd.Function):
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
        for some in runs(out.numel(), 1, x.device):
            half = x_flat[some].square().mul_(-0.5)
            density = half.exp()
            half.add_(1).mul_(density).mul_(g[some]).mul_(2 / math.sqrt(2 * math.pi))
            torch.mul(half, u_flat[some], out=out[some])
        return torch.ops.aten.gelu_backward(u, x), by_x


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:
    return ClosedFormGelu.apply(input) if approximate == "none" else None


def gelu_in_closed_form() -> Replaced:
    """The exact GELU by :class:`ClosedFormGelu`."""
    return Replaced((torch.nn.functional.gelu,), _gelu)


def _closed_form_tangent(node: Node, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(x, *node.raw.saved_tensors)


OPERATIONS = {
    "GeluBackward0": Operation(
        tangent=symmetric, flow=elementwise, alternatives={"twice": gelu_in_closed_form}
    ),
    "ClosedFormGeluBackward": Operation(tangent=_closed_form_tangent),
}
