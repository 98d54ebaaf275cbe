"""softmax_root_mm beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import softmax_root_mm


def eager(z: Tensor, v: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    product = p.sqrt() * v[0]
    return (w.sqrt().unsqueeze(dim) * (product - p * product.sum(dim, keepdim=True))).unsqueeze(0)


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.product("softmax_root_mm", softmax_root_mm, eager, device, dtype, rounds)
