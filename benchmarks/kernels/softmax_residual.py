"""softmax_residual beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import softmax_residual


def eager(z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None, dim: int) -> Tensor:
    residual = torch.softmax(z, dim) * w.unsqueeze(dim)
    return residual.scatter_add_(dim, target.unsqueeze(dim), -w.unsqueeze(dim))


def others(z: Tensor, dim: int) -> tuple[Tensor | None, ...]:
    w = _outputs.weights(z, dim)
    return torch.randint(z.shape[dim], w.shape, device=z.device), w, None


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.sweep(
        "softmax_residual", softmax_residual, eager, others, device, dtype, rounds
    )
