"""softmax_sample: labels drawn from the model; its floor is two passes over a tensor: read z, write."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext import reference
from curvext.kernels import softmax_sample


def own(z: Tensor, w: Tensor, dim: int) -> Tensor:
    """Gumbel's maximum with torch's own numbers, which depend on the batch."""
    label = (z - torch.empty_like(z).exponential_().log_()).argmax(dim, keepdim=True)
    root = w.sqrt().unsqueeze(dim)
    return (torch.softmax(z, dim) * root).scatter_add_(dim, label, -root)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.sampled(softmax_sample, reference.softmax_sample, own, device, dtype, True)
