"""The identity, for damping."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.arguments import as_integer
from curvext.operators.linear import LinearOperator


class Identity(LinearOperator):
    """The identity on ℝ^P, for damping: ``G + 1e-3 * Identity(P)``.

    Args:
        size: P.

    Example:
        >>> import torch, curvext as cx
        >>> (0.5 * cx.Identity(3)) @ torch.ones(3)
        tensor([0.5000, 0.5000, 0.5000])
    """

    dtype = None
    device = None

    def __init__(self, size: int) -> None:
        self.size = as_integer("Identity: size", size, 0)

    def _columns(self, columns: list[Tensor]) -> Tensor:
        return torch.stack(columns)

    def diagonal(self) -> Tensor:
        """Ones, ``[P]``."""
        return torch.ones(self.size, device="cpu")

    def trace(self) -> Tensor:
        """P."""
        return torch.tensor(float(self.size), device="cpu")
