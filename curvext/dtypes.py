"""The dtype in which sums accumulate, and conversion to it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def dtype_of_sums(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the dtype in which sums over samples accumulate."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def wide(t: Tensor) -> Tensor:
    """``t`` in at least float32, the dtype in which squares are summed."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def alike(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their widest dtype, and at least float32."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]
