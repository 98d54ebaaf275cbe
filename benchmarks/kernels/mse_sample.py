"""mse_sample beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import mse_sample


def eager(z: Tensor, w: Tensor, seed: int, draw: int, first: int) -> Tensor:
    """With torch's own numbers, which depend on the batch."""
    return (2 * w).sqrt() * torch.randn_like(z)


def others(z: Tensor) -> tuple[Tensor | int, ...]:
    return _outputs.weights(z, None), 0, 0, 0


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.elements("mse_sample", mse_sample, eager, others, device, dtype, rounds)
