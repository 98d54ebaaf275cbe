"""sigmoid_hessian_mm: H_ℓ u of the binary cross-entropy; its floor is to read what it takes and write once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs
from curvext.kernels import sigmoid_hessian_mm


def plain(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return w * torch.sigmoid(z) * torch.sigmoid(-z) * u


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    return _outputs.elements(sigmoid_hessian_mm, plain, device, dtype)
