"""softmax_hessian_mm beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import softmax_hessian_mm


def eager(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    product = p * u[0]
    return (w.unsqueeze(dim) * (product - p * product.sum(dim, keepdim=True))).unsqueeze(0)


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.product("softmax_hessian_mm", softmax_hessian_mm, eager, device, dtype, rounds)
