"""Attention that can be differentiated twice, with the second derivatives of its formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from curvext.operations.alternative import Replaced
from curvext.operations.attention_formulas import (
    Scores,
    centred,
    chunks,
    scores_tangent,
    square,
    vjp,
)
from curvext.torch_internals.switches import with_every_attention


class _ClosedFormAttention(torch.autograd.Function):
    """y = P v; its backward can be differentiated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        ctx.scores = scores
        with with_every_attention():
            if _has_fused_vjp(q, k, v, scores):
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
        return (*_AttentionVjp.apply(g, q, k, v, fused, ctx.scores), None)


def _has_fused_vjp(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> bool:
    """Whether the CPU's fused kernels take this; rows that a mask leaves nothing of are not for them."""
    if q.device.type != "cpu" or q.ndim != 4 or scores.mask is not None:
        return False  # they take [N, heads, T, F] alone, which not every version of PyTorch's choice asks for
    kernel = torch._fused_sdp_choice(q, k, v, None, 0.0, scores.causal, scale=scores.alpha)
    return bool(kernel == SDPBackend.FLASH_ATTENTION.value)


class _AttentionVjp(torch.autograd.Function):
    """:func:`vjp`, differentiable."""

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
        return vjp(g, (q, k, v), scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients of Φ = ⟨x, dq⟩ + ⟨y, dk⟩ + ⟨z, dv⟩. As vjp is the transpose of the tangent,
        # Φ = ⟨g, Ṗ v + P z⟩ with (x, y, z) in place of (q̇, k̇, v̇), and so
        #   ∂Φ/∂Ṡ = dS,   ∂Φ/∂P = Ṡ ∘ (W − c) − r ∘ W + g zᵀ,   W = g vᵀ, c = ⟨P, W⟩, r = ⟨P, Ṡ⟩ by row.
        scores, alpha = ctx.scores, ctx.scores.alpha
        saved = ctx.saved_tensors
        shape = square(saved[1], saved[2])
        outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in saved]
        by_g, by_q, by_k, by_v = (t.view(-1, *t.shape[-2:]) for t in outputs)
        g, q, k, v = (t.flatten(0, -3) for t in saved)
        x, y, z = (t.flatten(0, -3) for t in (x, y, z))
        for heads in chunks(q, k):
            P = scores.probabilities(q[heads], k[heads], heads, shape)
            change = scores_tangent(q, k, x, y, heads, alpha)  # Ṡ
            W = torch.bmm(g[heads], v[heads].mT)
            c = torch.linalg.vecdot(P, W).unsqueeze(-1)
            r = torch.linalg.vecdot(P, change).unsqueeze(-1)
            dP = (change - r).mul_(P)
            dS = (W - c).mul_(P)
            by_P = torch.bmm(g[heads], z[heads].mT).addcmul_(change, W - c).addcmul_(r, W, value=-1)
            by_S = centred(P, by_P).mul_(alpha)
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


def attention_in_closed_form() -> Replaced:
    """``scaled_dot_product_attention`` by the functions here, where they have all its options.

    Calls inside a composite function (``nn.MultiheadAttention``) are not seen by a mode.
    """
    return Replaced((torch.nn.functional.scaled_dot_product_attention,), _closed_form)
