"""Σ_m w_m x_m x_mᵀ, the sum that every factor is."""

from __future__ import annotations

from torch import Tensor

from curvext.linearise.uses import wide


def second_moment(x: Tensor, w: Tensor | None, dense: bool) -> Tensor:
    """Σ_m w_m x_m x_mᵀ for x ``[G, M, D]`` and w ``[G, M]`` or None for ones.

    Returns:
        ``[G, D, D]``, or its diagonal ``[G, D]`` where not ``dense``, in at least float32.
    """
    x = wide(x)
    weighted = x if w is None else x * w.to(x.dtype).unsqueeze(2)
    return x.mT @ weighted if dense else (x * weighted).sum(1)
