"""Broadcasting to a larger shape, and per-sample gradients of operands that an operation broadcasts."""

from __future__ import annotations

from torch import Tensor

from curvext.gradients.dense import DenseGradient
from curvext.gradients.structured import StructuredGradient
from curvext.operations.flow import At, Inputs, Outputs
from curvext.operations.node import Node, total
from curvext.operations.operation import Operation, OutputGradient
from curvext.samples import owners as own


def broadcast_gradient(at: OutputGradient, g: Tensor) -> StructuredGradient | None:
    """Per-sample gradient of an operand that was broadcast to the shape of ``g``."""
    shape, layout, samples = at.shape, at.layout, at.samples
    lead = g.ndim - len(shape)
    varies = samples > 1 and layout.dim >= lead and shape[layout.dim - lead] != 1
    if lead < 0 or varies:
        return None  # the operand itself varies with the sample
    per_sample = at.by_sample(g)  # [N, *g.shape with dim cut]
    sizes = per_sample.shape[1:]
    summed = [1 + d for d in range(g.ndim) if sizes[d] != 1 and (d < lead or shape[d - lead] == 1)]
    if summed:
        per_sample = per_sample.sum(summed, keepdim=True)
    return DenseGradient(per_sample.reshape(samples, *shape))


def broadcast(at: OutputGradient) -> StructuredGradient | None:
    """y = x, or x + other inputs, with x broadcast."""
    return broadcast_gradient(at, at.g)


def channel_gradient(at: OutputGradient, g: Tensor) -> StructuredGradient | None:
    """Per-sample sums of ``g [N', C, ...]`` over all but the channels."""
    if at.layout.dim != 0:
        return None
    return DenseGradient(at.by_sample(g).movedim(2, 1).flatten(2).sum(2))


def channels(at: OutputGradient) -> StructuredGradient | None:
    """y = x + b with one b for each channel."""
    return channel_gradient(at, at.g)


def _tangent(node: Node, *inputs: Tensor | None) -> Tensor | None:
    return total(inputs, node.shape)


def _flow(at: At, out: Outputs) -> Inputs:
    return [own.summed_to(out[0], at.shape(0))]


OPERATIONS = {
    "ExpandBackward0": Operation(per_sample={0: broadcast}, tangent=_tangent, flow=_flow),
}
