"""sigmoid_sample: residuals at Bernoulli targets; its floor is two passes: read z, write."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext import reference
from curvext.kernels import sigmoid_sample


def own(z: Tensor, w: Tensor) -> Tensor:
    """With torch's own numbers, which depend on the batch."""
    p = torch.sigmoid(z)
    return w.sqrt() * (p - torch.bernoulli(p))


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.sampled(sigmoid_sample, reference.sigmoid_sample, own, device, dtype, False)
