"""Scaled dot-product attention and its first derivatives, a few heads at a time.

y = P v with P = softmax(α q kᵀ + mask). PyTorch's fused kernels have neither a tangent nor a second
derivative, and its composed form keeps every T×T matrix of every layer. Here P is computed anew for
a few heads at a time, so that nothing of that size outlives its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: elements of an attention matrix that are formed at a time: a few of them fit a CPU's cache, or fill a GPU
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}


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


def chunks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Slices of the heads of q [H, T, d] and k [H, T', d]."""
    chunk = _CHUNK.get(q.device.type, _CHUNK["cpu"])
    step = max(1, chunk // max(1, q.shape[1] * k.shape[1]))
    for start in range(0, q.shape[0], step):
        yield slice(start, min(start + step, q.shape[0]))


def square(q: Tensor, k: Tensor) -> torch.Size:
    return torch.Size((*q.shape[:-1], k.shape[-2]))


def with_heads_of(q: Tensor, t: Tensor) -> Tensor:
    """Keys or values with one head for each of the queries', where several queries share one (``enable_gqa``)."""
    if t.shape[:-2] == q.shape[:-2]:
        return t
    if t.shape[-3] != q.shape[-3]:
        t = t.repeat_interleave(q.shape[-3] // t.shape[-3], -3)
    return t.expand(*q.shape[:-2], *t.shape[-2:])


def shared_by_heads(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient by keys or values from that of :func:`with_heads_of`."""
    if gradient.shape == like.shape:
        return gradient
    groups = gradient.unflatten(-3, (like.shape[-3], -1)).sum(-3)
    return groups.sum_to_size(like.shape)


def _heads(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.flatten(0, -3)


def centred(P: Tensor, x: Tensor) -> Tensor:
    """P ∘ (x − ⟨P, x⟩) by row: softmax's Jacobian, which is symmetric."""
    return torch._softmax_backward_data(x, P, -1, P.dtype)


def tangent(
    inputs: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    scores: Scores,
) -> Tensor:
    """ẏ = Ṗ v + P v̇ for the tangents of q, k and v, None for zero."""
    query = inputs[0]
    inputs = (query, with_heads_of(query, inputs[1]), with_heads_of(query, inputs[2]))
    dq, *others = tangents
    dk, dv = (None if t is None else with_heads_of(query, t) for t in others)
    shape = square(inputs[0], inputs[1])
    q, k, v = (t.flatten(0, -3) for t in inputs)
    dq, dk, dv = (_heads(t) for t in (dq, dk, dv))
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    for heads in chunks(q, k):
        P = scores.probabilities(q[heads], k[heads], heads, shape)
        total: Tensor | None = None
        if dq is not None or dk is not None:
            change = centred(P, scores_tangent(q, k, dq, dk, heads, scores.alpha))
            total = torch.bmm(change, v[heads])
        if dv is not None:
            total = torch.bmm(P, dv[heads]) if total is None else total.baddbmm_(P, dv[heads])
        assert total is not None
        out[heads] = total
    return out.view(*inputs[0].shape[:-1], v.shape[-1])


def vjp(
    g: Tensor, inputs: tuple[Tensor, Tensor, Tensor], scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by q, k and v along g: dS = P ∘ (g vᵀ − ⟨P, g vᵀ⟩), then α dS k, α dSᵀ q and Pᵀ g."""
    shape = square(inputs[0], inputs[1])
    outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]
    dq, dk, dv = (t.view(-1, *t.shape[-2:]) for t in outputs)
    g, q, k, v = (t.flatten(0, -3) for t in (g, *inputs))
    for heads in chunks(q, k):
        P = scores.probabilities(q[heads], k[heads], heads, shape)
        dS = centred(P, torch.bmm(g[heads], v[heads].mT)).mul_(scores.alpha)
        torch.bmm(dS, k[heads], out=dq[heads])
        torch.bmm(dS.mT, q[heads], out=dk[heads])
        torch.bmm(P.mT, g[heads], out=dv[heads])
    return outputs[0], outputs[1], outputs[2]


def scores_tangent(
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
