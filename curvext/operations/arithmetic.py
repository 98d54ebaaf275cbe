"""Sums, differences, products and quotients, element by element."""

from __future__ import annotations

from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.operations.broadcasting import broadcast, broadcast_gradient
from curvext.operations.flow import elementwise
from curvext.operations.node import Node, Saved, total
from curvext.operations.operation import Operation, OutputGradient


def _product(at: OutputGradient, factor: Tensor | None) -> StructuredGradient | None:
    return None if factor is None else broadcast_gradient(at, at.g * factor)


def _added(at: OutputGradient) -> StructuredGradient | None:
    """z in y = x + α z."""
    return broadcast_gradient(at, at.g if at.saved.alpha == 1 else at.g * at.saved.alpha)


def _add(node: Node, x: Tensor | None, z: Tensor | None = None) -> Tensor | None:
    """ẏ of y = x + α z."""
    return total([x, _times(z, node.saved.alpha)], node.shape)


def _sub(node: Node, x: Tensor | None, z: Tensor | None = None) -> Tensor | None:
    """ẏ of y = x − α z."""
    return total([x, _times(z, -node.saved.alpha)], node.shape)


def _mul(node: Node, x: Tensor | None, z: Tensor | None = None) -> Tensor | None:
    """ẏ of y = x z."""
    first = None if x is None else x * node.saved.other
    if z is None:
        return total([first], node.shape)
    if first is None or first.shape != node.shape:
        return total([first, node.saved.self * z], node.shape)
    return first.addcmul_(node.saved.self, z)


def _times(t: Tensor | None, factor: float) -> Tensor | None:
    return t if t is None or factor == 1 else factor * t


def _adds(saved: Saved) -> bool:
    return bool(saved.alpha == 1)


_ELEMENTWISE = Operation(flow=elementwise)

OPERATIONS = {
    "AddBackward0": Operation(
        per_sample={0: broadcast, 1: _added}, tangent=_add, flow=elementwise, addition=_adds
    ),
    "AddBackward1": _ELEMENTWISE,
    "DivBackward0": Operation(
        per_sample={0: lambda at: broadcast_gradient(at, at.g / at.saved.other)}, flow=elementwise
    ),
    **dict.fromkeys([f"DivBackward{n}" for n in (1, 2, 3)], _ELEMENTWISE),
    "MulBackward0": Operation(
        per_sample={
            0: lambda at: _product(at, at.saved.other),
            1: lambda at: _product(at, at.saved.self),
        },
        tangent=_mul,
        flow=elementwise,
    ),
    "MulBackward1": _ELEMENTWISE,
    "SubBackward0": Operation(
        per_sample={
            0: broadcast,
            1: lambda at: broadcast_gradient(at, at.g * -at.saved.alpha),
        },
        tangent=_sub,
        flow=elementwise,
    ),
    "SubBackward1": _ELEMENTWISE,
}
