"""softmax_root_mm: S v of cross-entropy; its floor is three passes over a tensor: read z, read v, write."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext.kernels import softmax_root_mm


def plain(z: Tensor, v: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    product = p.sqrt() * v[0]
    return (w.sqrt().unsqueeze(dim) * (product - p * product.sum(dim, keepdim=True))).unsqueeze(0)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.product(softmax_root_mm, plain, device, dtype)
