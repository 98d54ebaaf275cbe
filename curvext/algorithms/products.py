"""The one door of every algorithm to its operator: checked, counted products."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class SymmetricOperator(Protocol):
    """What an algorithm needs of A: a curvext operator has it, and so may any object of a user's."""

    shape: Any
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor:
        """A v for a vector ``[P]``."""
        ...


class Products:
    """The products of a symmetric operator, counted.

    Args:
        A: an object with ``shape`` (P, P), ``dtype``, ``device`` and ``matvec``; its ``matmat`` is
            used for blocks where it has one.
        caller: the name of the public function, for its errors.

    Raises:
        TypeError: A lacks one of these.
        ValueError: A is not square.
    """

    def __init__(self, A: SymmetricOperator, caller: str):
        missing = [a for a in ("shape", "dtype", "device", "matvec") if not hasattr(A, a)]
        if missing:
            raise TypeError(
                f"{caller}: A must have shape, dtype, device and matvec; {type(A).__name__} has no "
                + ", ".join(missing)
            )
        rows, columns = A.shape
        if rows != columns:
            raise ValueError(f"{caller}: A must be square, got shape {tuple(A.shape)}")
        self.operator = A
        self.caller = caller
        self.size = int(rows)
        self.dtype: torch.dtype = A.dtype
        self.device = torch.device(A.device)
        #: how many vectors A has been multiplied with
        self.count = 0

    def vector(self, v: Tensor) -> Tensor:
        """A v, ``[P]``."""
        self.count += 1
        return self._like(self.operator.matvec(v), v)

    def block(self, V: Tensor) -> Tensor:
        """A V, ``[P, K]``, by ``matmat`` where A has one, else column by column."""
        self.count += V.shape[1]
        matmat = getattr(self.operator, "matmat", None)
        if matmat is not None:
            return self._like(matmat(V), V)
        if V.shape[1] == 0:
            return torch.empty_like(V)
        columns = [self._like(self.operator.matvec(c.contiguous()), c) for c in V.unbind(1)]
        return torch.stack(columns, 1)

    def _like(self, product: Any, v: Tensor) -> Tensor:
        if not isinstance(product, Tensor) or product.shape != v.shape:
            got = tuple(product.shape) if isinstance(product, Tensor) else type(product).__name__
            raise ValueError(
                f"{self.caller}: A returned {got} for a block of shape {tuple(v.shape)}"
            )
        return product
