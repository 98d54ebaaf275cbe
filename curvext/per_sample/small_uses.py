"""Small uses that are taken together, because an operation costs more than its arithmetic on a bias."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from curvext.gradients.dense import DenseGradient
from curvext.gradients.structured import StructuredGradient


class SmallUses:
    """Uses that are written out and small, as of biases and norms, of one batch."""

    #: elements of the gradients of all samples, for one use and for all
    _LARGEST, _MOST = 1 << 14, 1 << 18

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._elements = 0

    def takes(self, use: StructuredGradient) -> TypeGuard[DenseGradient]:
        """Whether a use is one of them."""
        return isinstance(use, DenseGradient) and use.gradients.numel() <= self._LARGEST

    def add(self, use: DenseGradient) -> None:
        """Adds a use."""
        self._rows.append(use.rows())
        self._elements += use.gradients.numel()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether so many elements are there that they should be taken."""
        return self._elements >= self._MOST

    @property
    def sizes(self) -> list[int]:
        """The elements of one sample's gradient, for each use."""
        return [rows.shape[1] for rows in self._rows]

    def together(self, dtype: torch.dtype) -> Tensor:
        """The gradients of all uses side by side, ``[N, Σ sizes]``, a new tensor."""
        return torch.cat([rows.to(dtype) for rows in self._rows], 1)
