"""How the kernels of the output Hessian lay out their results, for tracing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import as_integer


def like_softmax(z: Tensor, dim: int, u: Tensor | None = None) -> Tensor:
    """An empty result in the shape of the vectors u [K, *z], or of z.

    Class-contiguous rows where z has them, otherwise contiguous.
    """
    dim %= z.dim()
    like, at = (z, dim) if u is None else (u, dim + 1)
    neighbours = z.stride(dim) == 1 and z.shape[dim] > 1 and like.stride(at) == 1
    if dim != z.dim() - 1 and neighbours:
        rows = like.movedim(at, -1)
        return torch.empty(rows.shape, dtype=like.dtype, device=like.device).movedim(-1, at)
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def wrapped(function: str, seed: int) -> int:
    """Any integer reduced to 64 bits."""
    if not isinstance(seed, int):  # torch.compile passes a plain int as well
        seed = as_integer(f"{function}: seed", seed)
    return (seed + 2**63) % 2**64 - 2**63
