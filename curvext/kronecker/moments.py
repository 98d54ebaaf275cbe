"""Σ_m w_m x_m x_mᵀ, the sum that every factor is."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.gradients.structured import wide
from curvext.kernels.outer_cov import outer_cov
from curvext.kronecker.spectral import symmetric

#: from this width on one triangle takes less time than the whole product
_TRIANGLE = 256


def second_moment(x: Tensor, w: Tensor | None, dense: bool) -> Tensor:
    """Σ_m w_m x_m x_mᵀ for x ``[G, M, D]`` and w ``[G, M]`` or None for ones.

    Returns:
        ``[G, D, D]``, symmetric to the last bit, or its diagonal ``[G, D]`` where not ``dense``, in at least float32.
    """
    x = wide(x)
    if dense and x.shape[2] >= _TRIANGLE:
        ones = x.new_ones(x.shape[:2]) if w is None else w.to(x.dtype)
        return torch.stack([outer_cov(rows, some) for rows, some in zip(x, ones, strict=True)])
    weighted = x if w is None else x * w.to(x.dtype).unsqueeze(2)
    return symmetric(x.mT @ weighted) if dense else (x * weighted).sum(1)
