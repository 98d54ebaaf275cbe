"""Matrices of prescribed spectrum, as the least an algorithm may ask for: shape, dtype, device, matvec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Matrix:
    """A dense symmetric matrix with ``shape``, ``dtype``, ``device`` and ``matvec``, and nothing else.

    Args:
        dense: ``[P, P]``.
    """

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense
        self.shape = tuple(dense.shape)
        self.dtype = dense.dtype
        self.device = dense.device
        self.products = 0

    def matvec(self, v: Tensor) -> Tensor:
        assert v.shape == self.shape[:1] and v.dtype == self.dtype and v.device == self.device
        self.products += 1
        return self.dense @ v


class BlockMatrix(Matrix):
    """One that also multiplies blocks, as curvext's operators do."""

    def matmat(self, V: Tensor) -> Tensor:
        assert V.ndim == 2 and V.dtype == self.dtype
        self.products += V.shape[1]
        return self.dense @ V


def rotation(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix ``[P, P]``, float64, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q


def with_spectrum(
    values: Sequence[float] | Tensor,
    dtype: torch.dtype = torch.float64,
    device: Any = "cpu",
    seed: int = 0,
    kind: type[Matrix] = Matrix,
) -> Matrix:
    """Q diag(values) Qᵀ with a random rotation Q."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = rotation(len(values), seed)
    dense = (q * values) @ q.T
    return kind(((dense + dense.T) / 2).to(device, dtype))


def vector(size: int, *columns: int, seed: int = 1) -> Tensor:
    """A random vector ``[P]``, or block, float64, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *columns, generator=generator, dtype=torch.float64)
