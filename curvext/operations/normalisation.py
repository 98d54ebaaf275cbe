"""Norms of channels, of groups of them, and by root mean squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.operations.broadcasting import broadcast_gradient, channel_gradient, channels
from curvext.operations.flow import At, Inputs, Outputs, each, local
from curvext.operations.layer_norm import normalized
from curvext.operations.node import Node, Saved, transposed
from curvext.operations.operation import Operation, OutputGradient
from curvext.samples import owners as own

# ---------------------------------------------------------------------- batch norm


def _epsilon(saved: Saved) -> float:
    """cuDNN's has another name."""
    return float(saved.epsilon if hasattr(saved, "epsilon") else saved.eps)


def _batch_norm_weight(at: OutputGradient) -> StructuredGradient | None:
    if getattr(at.saved, "training", True):
        return None
    x = at.saved.input
    channel = [1, -1] + [1] * (x.ndim - 2)
    mean = at.saved.running_mean.view(channel)
    rstd = (at.saved.running_var + _epsilon(at.saved)).rsqrt().view(channel)
    return channel_gradient(at, at.g * ((x - mean) * rstd).to(at.g.dtype))


def _batch_norm_tangent(
    node: Node, x: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor | None:
    """ẏ of y = w x̂ + b by channel, with running statistics; those of the batch go the general way."""
    saved = node.saved
    if saved.running_mean is None or saved.training:
        return transposed(node.raw, (x, weight, bias))[0]
    along = (-1, *[1] * (len(node.shape) - 2))
    rstd = (saved.running_var + _epsilon(saved)).rsqrt()
    tangent: Tensor | None = None
    if weight is not None:
        # each pass has one factor by channel, which is what PyTorch vectorises
        factor = rstd * weight
        shift = -saved.running_mean * factor
        tangent = saved.input * factor.view(along)
        tangent += (shift if bias is None else shift.add_(bias)).view(along)
    elif bias is not None:
        tangent = bias.view(along).expand(node.shape)
    if x is None:
        return tangent
    scale = (rstd if saved.weight is None else rstd * saved.weight).view(along)
    return x * scale if tangent is None else torch.addcmul(tangent, x, scale)


def _batch_norm_flow(at: At, out: Outputs) -> Inputs:
    """By running statistics element by element, by those of the batch each channel for itself."""
    others = [d for d in range(len(at.out_shape())) if d != 1]
    channels = own.along(out[0], others)
    x = channels if at.attribute("training") else out[0]
    weight = None if channels is None else channels.reshape(-1)
    return each(at, lambda i: weight if i else x)


def _shares_statistics(saved: Saved) -> bool:
    """Instance norm is a batch norm of one image that has all channels."""
    return getattr(saved, "training", True) and (
        not hasattr(saved, "input") or saved.input.shape[0] > 1
    )


# ---------------------------------------------------------------------- group norm and RMS norm


def _group_norm_weight(at: OutputGradient) -> StructuredGradient | None:
    x, groups = at.saved.input, at.saved.group
    mean = at.saved.result1.reshape(x.shape[0], groups, 1)
    rstd = at.saved.result2.reshape(x.shape[0], groups, 1)
    normed = ((x.reshape(x.shape[0], groups, -1) - mean) * rstd).view(x.shape)
    return channel_gradient(at, at.g * normed.to(at.g.dtype))


def _rms_norm_weight(at: OutputGradient) -> StructuredGradient | None:
    return broadcast_gradient(at, at.g * (at.saved.input * at.saved.result1).to(at.g.dtype))


def _all_but_first(at: At, ndim: int) -> Sequence[int]:
    return range(1, ndim)


_BATCH_NORM = Operation(
    per_sample={1: _batch_norm_weight, 2: channels},
    tangent=_batch_norm_tangent,
    flow=_batch_norm_flow,
    batch_statistics=_shares_statistics,
)

OPERATIONS = {
    "CudnnBatchNormBackward0": _BATCH_NORM,
    "FusedRmsNormBackward0": Operation(per_sample={1: _rms_norm_weight}, flow=local(normalized)),
    "MiopenBatchNormBackward0": Operation(batch_statistics=_shares_statistics),
    "NativeBatchNormBackward0": _BATCH_NORM,
    "NativeGroupNormBackward0": Operation(
        per_sample={1: _group_norm_weight, 2: channels}, flow=local(_all_but_first)
    ),
    "SyncBatchNormBackward": Operation(batch_statistics=_shares_statistics),
}
