"""softmax_sample beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import softmax_sample


def eager(z: Tensor, w: Tensor, seed: int, draw: int, first: int, dim: int) -> Tensor:
    """Gumbel's maximum with torch's own numbers, which depend on the batch."""
    label = (z - torch.empty_like(z).exponential_().log_()).argmax(dim, keepdim=True)
    root = w.sqrt().unsqueeze(dim)
    return (torch.softmax(z, dim) * root).scatter_add_(dim, label, -root)


def others(z: Tensor, dim: int) -> tuple[Tensor | int, ...]:
    return _outputs.weights(z, dim), 0, 0, 0


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.sweep("softmax_sample", softmax_sample, eager, others, device, dtype, rounds)
