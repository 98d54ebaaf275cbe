"""Scaled dot-product attention and its derivatives to second order, a few heads at a time.

y = P v with P = softmax(α q kᵀ + mask). PyTorch's fused kernels have neither a tangent nor a second
derivative, and its composed form keeps every T×T matrix of every layer. Here P is computed anew for
a few heads at a time, so that nothing of that size outlives its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvext.operations.closed_forms import InClosedForm

#: elements of an attention matrix that are formed at a time: a few of them fit a CPU's cache, or fill a GPU
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}

_FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class Scores:
    """How scores come from queries and keys.

    Args:
        alpha: the factor on q kᵀ.
        causal: whether position t sees positions up to t alone.
        mask: added to the scores, [..., T, T'], or None.
    """

    alpha: float
    causal: bool
    mask: Tensor | None

    def probabilities(self, q: Tensor, k: Tensor, heads: slice, shape: torch.Size) -> Tensor:
        """P of some heads [H, T, T']; zero in rows that see nothing."""
        scores = torch.bmm(q, k.mT).mul_(self.alpha)
        if self.causal:
            scores += _after(scores.shape[-2], scores.shape[-1], scores)
        if self.mask is None:  # every row sees something
            return torch.softmax(scores, -1)
        scores += self.mask.broadcast_to(shape).flatten(0, -3)[heads]
        return torch._safe_softmax(scores, -1)


def _after(rows: int, columns: int, like: Tensor) -> Tensor:
    """−∞ for the positions after each row's own, else 0."""
    return like.new_full((rows, columns), -math.inf).triu_(1)


def _chunks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Slices of the heads of q [H, T, d] and k [H, T', d]."""
    chunk = _CHUNK.get(q.device.type, _CHUNK["cpu"])
    step = max(1, chunk // max(1, q.shape[1] * k.shape[1]))
    for start in range(0, q.shape[0], step):
        yield slice(start, min(start + step, q.shape[0]))


def _square(q: Tensor, k: Tensor) -> torch.Size:
    return torch.Size((*q.shape[:-1], k.shape[-2]))


def _with_heads_of(q: Tensor, t: Tensor) -> Tensor:
    """Keys or values with one head for each of the queries', where several queries share one (``enable_gqa``)."""
    if t.shape[:-2] == q.shape[:-2]:
        return t
    if t.shape[-3] != q.shape[-3]:
        t = t.repeat_interleave(q.shape[-3] // t.shape[-3], -3)
    return t.expand(*q.shape[:-2], *t.shape[-2:])


def _shared_by_heads(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient by keys or values from that of :func:`_with_heads_of`."""
    if gradient.shape == like.shape:
        return gradient
    groups = gradient.unflatten(-3, (like.shape[-3], -1)).sum(-3)
    return groups.sum_to_size(like.shape)


def _heads(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.flatten(0, -3)


def _centred(P: Tensor, x: Tensor) -> Tensor:
    """P ∘ (x − ⟨P, x⟩) by row: softmax's Jacobian, which is symmetric."""
    return torch._softmax_backward_data(x, P, -1, P.dtype)


def tangent(
    inputs: tuple[Tensor, Tensor, Tensor],
    moved: tuple[Tensor | None, Tensor | None, Tensor | None],
    scores: Scores,
) -> Tensor:
    """ẏ = Ṗ v + P v̇ for the tangents of q, k and v, None for zero."""
    query = inputs[0]
    inputs = (query, _with_heads_of(query, inputs[1]), _with_heads_of(query, inputs[2]))
    moved_q, *others = moved
    moved_k, moved_v = (None if t is None else _with_heads_of(query, t) for t in others)
    shape = _square(inputs[0], inputs[1])
    q, k, v = (t.flatten(0, -3) for t in inputs)
    dq, dk, dv = (_heads(t) for t in (moved_q, moved_k, moved_v))
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    for heads in _chunks(q, k):
        P = scores.probabilities(q[heads], k[heads], heads, shape)
        total: Tensor | None = None
        if dq is not None or dk is not None:
            change = _centred(P, _change(q, k, dq, dk, heads, scores.alpha))
            total = torch.bmm(change, v[heads])
        if dv is not None:
            total = torch.bmm(P, dv[heads]) if total is None else total.baddbmm_(P, dv[heads])
        assert total is not None
        out[heads] = total
    return out.view(*inputs[0].shape[:-1], v.shape[-1])


def slope(
    g: Tensor, inputs: tuple[Tensor, Tensor, Tensor], scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by q, k and v along g: dS = P ∘ (g vᵀ − ⟨P, g vᵀ⟩), then α dS k, α dSᵀ q and Pᵀ g."""
    shape = _square(inputs[0], inputs[1])
    outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]
    dq, dk, dv = (t.view(-1, *t.shape[-2:]) for t in outputs)
    g, q, k, v = (t.flatten(0, -3) for t in (g, *inputs))
    for heads in _chunks(q, k):
        P = scores.probabilities(q[heads], k[heads], heads, shape)
        dS = _centred(P, torch.bmm(g[heads], v[heads].mT)).mul_(scores.alpha)
        torch.bmm(dS, k[heads], out=dq[heads])
        torch.bmm(dS.mT, q[heads], out=dk[heads])
        torch.bmm(P.mT, g[heads], out=dv[heads])
    return outputs[0], outputs[1], outputs[2]


def of_node(node: Any) -> tuple[tuple[Tensor, Tensor, Tensor], Scores]:
    """Queries, keys and values of a node of fused attention, and its scores."""
    q, k, v = node._saved_query, node._saved_key, node._saved_value
    alpha = 1 / math.sqrt(q.shape[-1]) if node._saved_scale is None else node._saved_scale
    # the CPU's kernel and those of CUDA name it differently, and flash attention there has none
    mask = getattr(node, "_saved_attn_mask", None)
    mask = getattr(node, "_saved_attn_bias", None) if mask is None else mask
    return (q, k, v), Scores(alpha, node._saved_is_causal, mask)


#: fused attention whose backward adds up in any order, so that no two passes give the same bits
UNORDERED = {
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
}

#: replaces what a node's backward gave: (gradients of the inputs, gradients of the outputs) → those of the inputs
Hook = Callable[[tuple[Tensor | None, ...], tuple[Tensor, ...]], Any]


def in_fixed_order(node: Any) -> Hook:
    """A hook for a node of :data:`UNORDERED` that gives the gradients by q, k and v in closed form."""

    def hook(gradients: tuple[Tensor | None, ...], cotangents: tuple[Tensor, ...]) -> Any:
        (q, k, v), scores = of_node(node)
        every = (q, _with_heads_of(q, k), _with_heads_of(q, v))
        by_q, by_k, by_v = slope(cotangents[0].detach(), every, scores)
        by_inputs = (by_q, _shared_by_heads(by_k, k), _shared_by_heads(by_v, v))
        kept = [
            None if old is None else new for old, new in zip(gradients[:3], by_inputs, strict=True)
        ]
        return (*kept, *gradients[3:])

    return hook


def _change(
    q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None, heads: slice, alpha: float
) -> Tensor:
    """Ṡ = α (q̇ kᵀ + q k̇ᵀ)."""
    if dq is None:
        assert dk is not None
        return torch.bmm(q[heads], dk[heads].mT).mul_(alpha)
    change = torch.bmm(dq[heads], k[heads].mT)
    if dk is not None:
        change.baddbmm_(q[heads], dk[heads].mT)
    return change.mul_(alpha)


class _ClosedFormAttention(torch.autograd.Function):
    """y = P v; its backward can be differentiated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        ctx.scores = scores
        with sdpa_kernel(_FUSED):
            if _has_fused_slope(q, k, v, scores):
                y, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    q, k, v, 0.0, scores.causal, scale=scores.alpha
                )
                ctx.save_for_backward(q, k, v, y, logsumexp)
                return y
            ctx.save_for_backward(q, k, v)
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, scores.mask, is_causal=scores.causal, scale=scores.alpha
            )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *fused = ctx.saved_tensors
        fused = [t.detach() for t in fused]
        return (*_AttentionSlope.apply(g, q, k, v, fused, ctx.scores), None)


def _has_fused_slope(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> bool:
    """Whether the CPU's fused kernels take this; rows that a mask leaves nothing of are not for them."""
    if q.device.type != "cpu" or q.ndim != 4 or scores.mask is not None:
        return False  # they take [N, heads, T, F] alone, which not every version of PyTorch's choice asks for
    kernel = torch._fused_sdp_choice(q, k, v, None, 0.0, scores.causal, scale=scores.alpha)
    return bool(kernel == SDPBackend.FLASH_ATTENTION.value)


class _AttentionSlope(torch.autograd.Function):
    """:func:`slope`, differentiable."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, fused: list[Tensor], scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, q, k, v)
        ctx.scores = scores
        if fused:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g, q, k, v, *fused, 0.0, scores.causal, scale=scores.alpha
            )
        return slope(g, (q, k, v), scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients of Φ = ⟨x, dq⟩ + ⟨y, dk⟩ + ⟨z, dv⟩. As the slope is the transpose of the tangent,
        # Φ = ⟨g, Ṗ v + P z⟩ with (x, y, z) in place of (q̇, k̇, v̇), and so
        #   ∂Φ/∂Ṡ = dS,   ∂Φ/∂P = Ṡ ∘ (W − c) − r ∘ W + g zᵀ,   W = g vᵀ, c = ⟨P, W⟩, r = ⟨P, Ṡ⟩ by row.
        scores, alpha = ctx.scores, ctx.scores.alpha
        saved = ctx.saved_tensors
        shape = _square(saved[1], saved[2])
        outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in saved]
        by_g, by_q, by_k, by_v = (t.view(-1, *t.shape[-2:]) for t in outputs)
        g, q, k, v = (t.flatten(0, -3) for t in saved)
        x, y, z = (t.flatten(0, -3) for t in (x, y, z))
        for heads in _chunks(q, k):
            P = scores.probabilities(q[heads], k[heads], heads, shape)
            moved = _change(q, k, x, y, heads, alpha)  # Ṡ
            W = torch.bmm(g[heads], v[heads].mT)
            c = torch.linalg.vecdot(P, W).unsqueeze(-1)
            r = torch.linalg.vecdot(P, moved).unsqueeze(-1)
            dP = (moved - r).mul_(P)
            dS = (W - c).mul_(P)
            by_P = torch.bmm(g[heads], z[heads].mT).addcmul_(moved, W - c).addcmul_(r, W, value=-1)
            by_S = _centred(P, by_P).mul_(alpha)
            dS.mul_(alpha)
            by_g[heads] = torch.bmm(dP, v[heads]).baddbmm_(P, z[heads])
            by_q[heads] = torch.bmm(by_S, k[heads]).baddbmm_(dS, y[heads])
            by_k[heads] = torch.bmm(by_S.mT, q[heads]).baddbmm_(dS.mT, x[heads])
            by_v[heads] = torch.bmm(dP.mT, g[heads])
        return (*outputs, None, None)


def _closed_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attention by :class:`_ClosedFormAttention`; None for options that it does not have."""
    same_heads = query.ndim > 2 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    learned_mask = attn_mask is not None and attn_mask.requires_grad
    if dropout_p > 0 or enable_gqa or learned_mask or not same_heads:
        return None
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
            ~attn_mask, -math.inf
        )
    alpha = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _ClosedFormAttention.apply(query, key, value, Scores(alpha, is_causal, attn_mask))


def attention_in_closed_form() -> InClosedForm:
    """``scaled_dot_product_attention`` by the functions here, where they have all its options.

    Calls inside a composite function (``nn.MultiheadAttention``) are not seen by a mode.
    """
    return InClosedForm(torch.nn.functional.scaled_dot_product_attention, _closed_form)
