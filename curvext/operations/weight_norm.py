"""Weight normalisation W = g v / ‖v‖: PyTorch's fused one has a wrong second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.operations.alternative import Replaced
from curvext.operations.operation import Operation


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """From elementary operations."""
    others = [d for d in range(v.ndim) if d != dim % v.ndim] if dim != -1 else None
    norm = torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return v * (g / norm)


def composed_weight_norm() -> Replaced:
    """``torch._weight_norm`` from elementary operations."""
    return Replaced((torch._weight_norm,), _weight_norm)


OPERATIONS = {
    "WeightNormInterfaceBackward0": Operation(
        alternatives=dict.fromkeys(
            ("linearised", "doubled", "twice", "traced", "plain"), composed_weight_norm
        )
    ),
}
