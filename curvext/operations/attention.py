"""Fused attention: tangents, the same bits each time, and the forms that are differentiated twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from curvext.operations.attention_formulas import (
    Scores,
    shared_by_heads,
    tangent,
    vjp,
    with_heads_of,
)
from curvext.operations.attention_in_closed_form import attention_in_closed_form
from curvext.operations.flow import At, Inputs, Outputs, each
from curvext.operations.node import Node, Saved
from curvext.operations.operation import Hook, Operation
from curvext.samples import owners as own
from curvext.torch_internals.switches import with_math_attention


def _read(saved: Saved) -> tuple[tuple[Tensor, Tensor, Tensor], Scores]:
    """Queries, keys and values of a node of fused attention, and its scores."""
    q, k, v = saved.query, saved.key, saved.value
    alpha = 1 / math.sqrt(q.shape[-1]) if saved.scale is None else saved.scale
    # the CPU's kernel and those of CUDA name it differently, and flash attention there has none
    mask = getattr(saved, "attn_mask", None)
    mask = getattr(saved, "attn_bias", None) if mask is None else mask
    return (q, k, v), Scores(alpha, saved.is_causal, mask)


def _tangent(
    node: Node,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *mask: Tensor | None,
) -> Tensor:
    """By the fused kernel of the CPU."""
    inputs, scores = _read(node.saved)
    return tangent(inputs, (q, k, v), scores)


def _closed_form_tangent(
    node: Node, q: Tensor | None = None, k: Tensor | None = None, v: Tensor | None = None
) -> Tensor:
    return tangent(node.raw.saved_tensors[:3], (q, k, v), node.raw.scores)


def _flow(at: At, out: Outputs) -> Inputs:
    """q, k, v [N, heads, T, E]; a mask, where it has a gradient, broadcast to [N, heads, T, T]."""
    mixed = own.along(out[0], range(1, out[0].ndim)) if out[0] is not None else None
    return each(at, lambda i: mixed if i < 3 else own.summed_to(mixed, at.shape(i)))


def _in_fixed_order(node: Node) -> Hook:
    """Gives the gradients by q, k and v in closed form: CUDA's kernels add up in any order."""

    def hook(gradients: tuple[Tensor | None, ...], cotangents: tuple[Tensor, ...]) -> Any:
        (q, k, v), scores = _read(node.saved)
        every = (q, with_heads_of(q, k), with_heads_of(q, v))
        by_q, by_k, by_v = vjp(cotangents[0].detach(), every, scores)
        by_inputs = (by_q, shared_by_heads(by_k, k), shared_by_heads(by_v, v))
        kept = [
            None if old is None else new for old, new in zip(gradients[:3], by_inputs, strict=True)
        ]
        return (*kept, *gradients[3:])

    return hook


@contextmanager
def _differentiable() -> Iterator[None]:
    """In closed form where a mode sees the call, and elsewhere of elementary operations."""
    with with_math_attention(), attention_in_closed_form():
        yield


#: no fused kernel has a second derivative; of their tangents only the CPU's is known
_OF_CUDA = Operation(
    flow=_flow,
    once_differentiable=True,
    alternatives={
        "linearised": _differentiable,
        "doubled": _differentiable,
        "twice": _differentiable,
        "plain": with_math_attention,
    },
    fixed_order=_in_fixed_order,
)

OPERATIONS = {
    "ScaledDotProductCudnnAttentionBackward0": _OF_CUDA,
    "ScaledDotProductEfficientAttentionBackward0": _OF_CUDA,
    "ScaledDotProductFlashAttentionBackward0": _OF_CUDA,
    "ScaledDotProductFlashAttentionForCpuBackward0": Operation(
        tangent=_tangent,
        flow=_flow,
        once_differentiable=True,
        alternatives={
            "doubled": _differentiable,
            "twice": _differentiable,
            "plain": with_math_attention,
        },
    ),
    "ScaledDotProductFusedAttentionOverrideableBackward0": Operation(once_differentiable=True),
    "_ClosedFormAttentionBackward": Operation(tangent=_closed_form_tangent),
}
