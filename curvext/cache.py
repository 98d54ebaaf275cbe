"""A cache of items by batch, within a memory budget, that lives between products."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from curvext.arguments import as_integer
from curvext.memory import available_bytes


@dataclass(frozen=True)
class Entry:
    """Something kept for one batch, with the key of the batch's content."""

    key: int
    item: Any
    nbytes: int


class Cache:
    """Items by slot. An item is returned only for the content that it was made from.

    Args:
        budget: True for no limit, False for nothing, a number of bytes, or "auto" for half of what
            is free when an item comes.
        device: where the items lie.

    Raises:
        ValueError: ``budget`` is none of these.
    """

    def __init__(self, budget: bool | str | int, device: torch.device) -> None:
        if budget != "auto" and not isinstance(budget, bool):
            budget = as_integer("cache", budget, 0, why="bytes, or 'auto', True or False")
        self._budget = budget
        self._device = device
        self._entries: dict[Hashable, Entry] = {}

    @property
    def keeps(self) -> bool:
        """Whether the budget allows keeping anything at all."""
        return self._budget is not False and self._budget != 0

    def get(self, slot: Hashable, key: int) -> Any | None:
        """The item in ``slot`` if it was made from the content ``key``, else None."""
        entry = self._entries.get(slot)
        return entry.item if entry is not None and entry.key == key else None

    def put(self, slot: Hashable, key: int, item: Any) -> bool:
        """Keeps ``item``, of size ``item.nbytes()``, if the budget allows; returns whether it did."""
        self.drop(slot)
        if not self.keeps:
            return False
        nbytes = item.nbytes()
        if self._budget is not True and nbytes > self._left():
            return False
        self._entries[slot] = Entry(key, item, nbytes)
        return True

    def drop(self, slot: Hashable) -> None:
        """Drops the item in ``slot``, if there is one."""
        self._entries.pop(slot, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_entries": {}}  # a copy or a pickle is empty: graphs can be neither

    def _left(self) -> int:
        if self._budget == "auto":
            return available_bytes(self._device) // 2
        return int(self._budget) - self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()
