"""Convolutions, also transposed and in groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.structured import StructuredGradient
from curvext.operations.broadcasting import channels
from curvext.operations.flow import At, Inputs, Outputs, constant, each
from curvext.operations.node import Node
from curvext.operations.operation import Operation, OutputGradient, Product
from curvext.samples import owners as own


def _weight(at: OutputGradient) -> StructuredGradient | None:
    if at.layout.dim != 0:
        return None
    saved = at.saved
    spatial = saved.input.ndim - 2
    inner, outer = (at.g, saved.input) if saved.transposed else (saved.input, at.g)
    return ConvolutionGradient(
        at.by_sample(inner),
        at.by_sample(outer),
        at.shape,
        stride=_full(saved.stride, spatial),
        padding=_full(saved.padding, spatial),
        dilation=_full(saved.dilation, spatial),
        groups=saved.groups,
        transposed=saved.transposed,
    )


def _full(value: Sequence[int], spatial: int) -> tuple[int, ...]:
    return tuple(value) * (spatial if len(value) == 1 else 1)


def _tangent(
    node: Node, x: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    """ẏ of y = x * W + b."""
    saved = node.saved
    how = (
        saved.stride,
        saved.padding,
        saved.dilation,
        saved.transposed,
        saved.output_padding,
        saved.groups,
    )
    tangent = None
    if weight is not None:
        tangent = torch.convolution(saved.input, weight, bias, *how)
    elif bias is not None:
        tangent = bias.view(-1, *[1] * (len(node.shape) - 2)).expand(node.shape)
    if x is None:
        return tangent
    by_x = torch.convolution(x, saved.weight, None, *how)
    return by_x if tangent is None else by_x.add_(tangent)


def _flow(at: At, out: Outputs) -> Inputs:
    """Images each for itself; the kernel sees all."""
    mixed = own.along(out[0], range(1, out[0].ndim)) if out[0] is not None else None
    return each(at, lambda i: mixed if i == 0 else constant(at, i, out))


OPERATIONS = {
    "ConvolutionBackward0": Operation(
        per_sample={1: _weight, 2: channels},
        tangent=_tangent,
        flow=_flow,
        multilinear=True,
        product=Product(0, 1, bias=2),
    ),
    "ConvolutionBackward1": Operation(flow=_flow),
}
