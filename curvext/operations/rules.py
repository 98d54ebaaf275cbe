"""What each operation does with a parameter: from a graph node to a :class:`StructuredGradient` of one canonical form.

A rule takes the node, the number of the input edge that leads to the parameter, the gradient g at
the node's output and its layout; it gives the per-sample gradient of that input in a form that is
never written out: an outer product Σ_s g_s a_sᵀ, a scatter of rows, or small per-sample tensors.
Nodes are PyTorch's autograd nodes; what they saved for their own backward is all a rule reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.structured import (
    DenseGradient,
    OuterGradient,
    RowsGradient,
    StructuredGradient,
)
from curvext.samples.layout import Layout

Rule = Callable[["Saved", Tensor, Layout, int, torch.Size], StructuredGradient | None]


class Saved:
    """What a node saved for its backward, cut off from the graph: ``saved.mat1`` is ``node._saved_mat1``."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._node, "_saved_" + name)
        return value.detach() if isinstance(value, Tensor) else value


def rule_for(name: str, edge: int) -> Rule | None:
    """The rule for input ``edge`` of a node called ``name``, if there is one."""
    return _RULES.get((name, edge))


# ---------------------------------------------------------------------- matrix products


def _rows(x: Tensor, layout: Layout, samples: int) -> Tensor:
    """A matrix [L, F] whose rows are laid out so, as [N, S, F]."""
    return layout.samples_first(x, samples)


def _right_factor(
    saved: Saved, g: Tensor, layout: Layout, samples: int, left: Tensor, alpha: float
) -> StructuredGradient | None:
    """y = left @ W with W [I, O]: the gradient of W is leftᵀ g."""
    if layout.dim != 0 or g.is_sparse:
        return None
    g = g if alpha == 1 else g * alpha
    return OuterGradient(_rows(left, layout, samples), _rows(g, layout, samples), transposed=True)


def _left_factor(
    saved: Saved, g: Tensor, layout: Layout, samples: int, right: Tensor, alpha: float
) -> StructuredGradient | None:
    """y = W @ right with W [O, I]: the samples lie along the columns."""
    if layout.dim != 1:
        return None
    by_column = layout.along(0)
    g = g if alpha == 1 else g * alpha
    return OuterGradient(_rows(right.t(), by_column, samples), _rows(g.t(), by_column, samples))


def _mm_right(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _right_factor(saved, g, layout, samples, saved.self, 1)


def _mm_left(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _left_factor(saved, g, layout, samples, saved.mat2, 1)


def _addmm_right(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _right_factor(saved, g, layout, samples, saved.mat1, saved.alpha)


def _addmm_left(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _left_factor(saved, g, layout, samples, saved.mat2, saved.alpha)


def _addmm_bias(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g if saved.beta == 1 else g * saved.beta, layout, samples, shape)


def _bmm_right(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    """y_b = left_b @ W_b with W [B, I, O]; einsum arrives here with B = 1."""
    if layout.dim != 1 or g.shape[0] != 1:
        return None
    inner = layout.along(0)
    left = saved.self
    return OuterGradient(
        _rows(left[0], inner, samples), _rows(g[0], inner, samples), transposed=True
    )


# ---------------------------------------------------------------------- convolution


def _convolution_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    if layout.dim != 0:
        return None
    x = saved.input
    spatial = x.ndim - 2
    inner, outer = (g, x) if saved.transposed else (x, g)
    return ConvolutionGradient(
        layout.samples_first(inner, samples),
        layout.samples_first(outer, samples),
        shape,
        stride=_full(saved.stride, spatial),
        padding=_full(saved.padding, spatial),
        dilation=_full(saved.dilation, spatial),
        groups=saved.groups,
        transposed=saved.transposed,
    )


def _convolution_bias(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    if layout.dim != 0:
        return None
    return DenseGradient(layout.samples_first(g, samples).movedim(2, 1).flatten(2).sum(2))


def _full(value: Sequence[int], spatial: int) -> tuple[int, ...]:
    return tuple(value) * (spatial if len(value) == 1 else 1)


# ---------------------------------------------------------------------- look-up


def _embedding(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    indices = saved.indices
    if layout.dim >= indices.ndim or saved.scale_grad_by_freq:
        return None
    index = layout.samples_first(indices, samples).reshape(samples, -1)
    rows = layout.samples_first(g, samples).reshape(samples, -1, g.shape[-1])
    skipped = saved.padding_idx
    if skipped >= 2**63:  # "none" is stored as -1 in an unsigned field
        return RowsGradient(index, rows, shape)
    present = index != skipped
    return RowsGradient(index, rows * present.unsqueeze(2), shape, present)


# ---------------------------------------------------------------------- normalisation


def _layer_norm_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    x, mean, rstd = saved.input, saved.result1, saved.result2
    return _broadcast(g * ((x - mean) * rstd).to(g.dtype), layout, samples, shape)


def _plain_broadcast(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g, layout, samples, shape)


def _group_norm_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    x, groups = saved.input, saved.group
    mean = saved.result1.reshape(x.shape[0], groups, 1)
    rstd = saved.result2.reshape(x.shape[0], groups, 1)
    normed = ((x.reshape(x.shape[0], groups, -1) - mean) * rstd).view(x.shape)
    return _per_channel(g * normed.to(g.dtype), layout, samples)


def _batch_norm_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    if getattr(saved, "training", True):
        return None
    x = saved.input
    eps = saved.eps if hasattr(saved, "eps") else saved.epsilon
    channel = [1, -1] + [1] * (x.ndim - 2)
    mean = saved.running_mean.view(channel)
    rstd = (saved.running_var + eps).rsqrt().view(channel)
    return _per_channel(g * ((x - mean) * rstd).to(g.dtype), layout, samples)


def _channel_bias(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _per_channel(g, layout, samples)


def _per_channel(x: Tensor, layout: Layout, samples: int) -> StructuredGradient | None:
    """Per-sample sums of [N', C, ...] over all but the channels."""
    if layout.dim != 0:
        return None
    return DenseGradient(layout.samples_first(x, samples).movedim(2, 1).flatten(2).sum(2))


def _rms_norm_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    x, rstd = saved.input, saved.result1
    return _broadcast(g * (x * rstd).to(g.dtype), layout, samples, shape)


# ---------------------------------------------------------------------- elementwise, with broadcasting


def _broadcast(
    g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    """Per-sample gradient of an operand of ``shape`` that was broadcast to the shape of ``g``."""
    lead = g.ndim - len(shape)
    varies = samples > 1 and layout.dim >= lead and shape[layout.dim - lead] != 1
    if lead < 0 or varies:
        return None  # the operand itself varies with the sample
    per_sample = layout.samples_first(g, samples)  # [N, *g.shape with dim cut]
    sizes = per_sample.shape[1:]
    summed = [1 + d for d in range(g.ndim) if sizes[d] != 1 and (d < lead or shape[d - lead] == 1)]
    if summed:
        per_sample = per_sample.sum(summed, keepdim=True)
    return DenseGradient(per_sample.reshape(samples, *shape))


def _add_first(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g, layout, samples, shape)


def _add_second(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g if saved.alpha == 1 else g * saved.alpha, layout, samples, shape)


def _sub_second(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g * -saved.alpha, layout, samples, shape)


def _mul_first(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return None if saved.other is None else _broadcast(g * saved.other, layout, samples, shape)


def _mul_second(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return None if saved.self is None else _broadcast(g * saved.self, layout, samples, shape)


def _div_first(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    return _broadcast(g / saved.other, layout, samples, shape)


def _prelu_weight(
    saved: Saved, g: Tensor, layout: Layout, samples: int, shape: torch.Size
) -> StructuredGradient | None:
    x = saved.self
    return _broadcast(torch.where(x > 0, 0, x * g), layout, samples, shape)


_RULES: dict[tuple[str, int], Rule] = {
    ("MmBackward0", 0): _mm_left,
    ("MmBackward0", 1): _mm_right,
    ("AddmmBackward0", 0): _addmm_bias,
    ("AddmmBackward0", 1): _addmm_left,
    ("AddmmBackward0", 2): _addmm_right,
    ("BmmBackward0", 1): _bmm_right,
    ("ConvolutionBackward0", 1): _convolution_weight,
    ("ConvolutionBackward0", 2): _convolution_bias,
    ("EmbeddingBackward0", 0): _embedding,
    ("NativeLayerNormBackward0", 1): _layer_norm_weight,
    ("NativeLayerNormBackward0", 2): _plain_broadcast,
    ("NativeGroupNormBackward0", 1): _group_norm_weight,
    ("NativeGroupNormBackward0", 2): _channel_bias,
    ("NativeBatchNormBackward0", 1): _batch_norm_weight,
    ("NativeBatchNormBackward0", 2): _channel_bias,
    ("CudnnBatchNormBackward0", 1): _batch_norm_weight,
    ("CudnnBatchNormBackward0", 2): _channel_bias,
    ("FusedRmsNormBackward0", 1): _rms_norm_weight,
    ("ExpandBackward0", 0): _plain_broadcast,
    ("AddBackward0", 0): _add_first,
    ("AddBackward0", 1): _add_second,
    ("SubBackward0", 0): _add_first,
    ("SubBackward0", 1): _sub_second,
    ("MulBackward0", 0): _mul_first,
    ("MulBackward0", 1): _mul_second,
    ("DivBackward0", 0): _div_first,
    ("PreluKernelBackward0", 1): _prelu_weight,
}

#: the nodes whose uses are outer products of a matrix, by its side, and those whose uses are rows of a table
LEFT_FACTORS = {("MmBackward0", 0), ("AddmmBackward0", 1)}
RIGHT_FACTORS = {("MmBackward0", 1), ("AddmmBackward0", 2)}
LOOK_UPS = {("EmbeddingBackward0", 0)}
