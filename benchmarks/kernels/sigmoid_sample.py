"""sigmoid_sample beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import sigmoid_sample


def eager(z: Tensor, w: Tensor, seed: int, draw: int, first: int) -> Tensor:
    """With torch's own numbers, which depend on the batch."""
    p = torch.sigmoid(z)
    return w.sqrt() * (p - torch.bernoulli(p))


def others(z: Tensor) -> tuple[Tensor | int, ...]:
    return _outputs.weights(z, None), 0, 0, 0


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.elements("sigmoid_sample", sigmoid_sample, eager, others, device, dtype, rounds)
