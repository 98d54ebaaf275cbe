"""softmax_root_t_mm beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import softmax_root_t_mm


def eager(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    centred = u[0] - (p * u[0]).sum(dim, keepdim=True)
    return ((w.unsqueeze(dim) * p).sqrt() * centred).unsqueeze(0)


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.product("softmax_root_t_mm", softmax_root_t_mm, eager, device, dtype, rounds)
