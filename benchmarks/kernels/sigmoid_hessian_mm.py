"""sigmoid_hessian_mm beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import _outputs
from curvext.kernels import sigmoid_hessian_mm


def eager(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return w * torch.sigmoid(z) * torch.sigmoid(-z) * u


def others(z: Tensor) -> tuple[Tensor, ...]:
    return torch.randn(1, *z.shape, device=z.device, dtype=z.dtype), _outputs.weights(z, None)


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    return _outputs.elements(
        "sigmoid_hessian_mm", sigmoid_hessian_mm, eager, others, device, dtype, rounds
    )
