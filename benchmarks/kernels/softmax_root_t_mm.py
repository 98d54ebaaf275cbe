"""softmax_root_t_mm: Sᵀ u of cross-entropy; its floor is three passes over a tensor: read z, read u, write."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext.kernels import softmax_root_t_mm


def plain(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    centred = u[0] - (p * u[0]).sum(dim, keepdim=True)
    return ((w.unsqueeze(dim) * p).sqrt() * centred).unsqueeze(0)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.product(softmax_root_t_mm, plain, device, dtype)
