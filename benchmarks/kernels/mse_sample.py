"""mse_sample: residuals at Gaussian targets; its floor is to write once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext import reference
from curvext.kernels import mse_sample


def own(z: Tensor, w: Tensor) -> Tensor:
    """With torch's own numbers, which depend on the batch."""
    return (2 * w).sqrt() * torch.randn_like(z)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.sampled(mse_sample, reference.mse_sample, own, device, dtype, False)
