"""A batch with its position in the data, and what is kept for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from curvext.problem.totals import BatchTotals

Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True)
class BatchSlot:
    """A batch and its position in the data.

    Args:
        number: of the batch in its pass.
        first: index of its first datum among those of this rank.
        batch: the batch.
        key: of its content.
    """

    number: int
    first: int
    batch: Any
    key: int


@dataclass(frozen=True)
class Kept(Generic[Item]):
    """An item made from a batch, with the batch's contribution to the totals."""

    totals: BatchTotals
    item: Item

    def nbytes(self) -> int:
        """Bytes that it holds."""
        return int(self.item.nbytes())  # type: ignore[attr-defined]  # what the cache is offered has it
