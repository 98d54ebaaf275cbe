"""The rows of a sum Σ x xᵀ while they are fewer than its side: its eigenvectors then come of their Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A side c Σ_m x_m x_mᵀ of fewer rows than columns.

    Attributes:
        x: ``[M, D]``.
        scale: c.
    """

    x: Tensor
    scale: float

    def nbytes(self) -> int:
        """Bytes that they hold."""
        return self.x.numel() * self.x.element_size()

    def eigenbasis(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The eigenvalues that are not zero ``[1, r]``, ascending, and their eigenvectors ``[1, D, r]``.

        Those of X Xᵀ, lifted by Xᵀ and made orthonormal, the largest first, in float64. What is below the rounding of
        the largest counts as zero.
        """
        x = self.x.double()
        values, vectors = torch.linalg.eigh(x @ x.T)
        floor = len(values) * torch.finfo(values.dtype).eps * values[-1:].clamp(min=0)
        some = values > floor
        values, vectors = values[some].flip(0), vectors[:, some].flip(1)
        basis, _ = torch.linalg.qr(x.T @ vectors)
        values, basis = self.scale * values.flip(0), basis.flip(1)
        return values.to(dtype).unsqueeze(0), basis.to(dtype).contiguous().unsqueeze(0)


class FewRows:
    """Takes rows while they are fewer than the side.

    Args:
        side: D; 0 where no eigenvectors will be asked for.
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self._parts: list[Tensor] | None = [] if side else None
        self._count = 0

    def want(self, count: int) -> bool:
        """Whether this many more rows are wanted; after the first refusal none are."""
        self._count += count
        if self._count >= self._side:
            self._parts = None
        return self._parts is not None

    def add(self, rows: Tensor | None) -> None:
        """Stores rows that are wanted, ``[M, D]``, which nobody writes to; None where they are not available."""
        assert self._parts is not None
        if rows is None:
            self._parts, self._side = None, 0
        else:
            self._parts.append(rows.contiguous())

    def rows(self, scale: float) -> Rows | None:
        """The side as rows times ``scale``; None where they were too many."""
        if not self._parts:
            return None
        return Rows(self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts), scale)
