"""The samples of one problem, cut into batches that lie on several ranks."""

from __future__ import annotations

from typing import Any

from problems import Posed

#: sizes of the batches of each rank; with two processes the last entry has no rank
SHARDS = {
    "uneven": ([3, 1], [2], [1, 4]),
    "nothing on the first": ([], [2, 1], [3]),
    "nothing on the last": ([2], [], []),
    "empty batches": ([0, 3], [0], [0, 2, 0]),
}


def samples(cut: str, world: int) -> int:
    """How many samples all ranks have."""
    return sum(map(sum, SHARDS[cut][:world]))


def union(posed: Posed) -> Any:
    """All samples as one batch."""
    return (posed.x, posed.y)


def shard(posed: Posed, cut: str, rank: int, world: int) -> list[Any]:
    """The batches of one rank."""
    sizes = SHARDS[cut][:world]
    start, found = sum(map(sum, sizes[:rank])), []
    for size in sizes[rank]:
        found.append((posed.x[start : start + size], posed.y[start : start + size]))
        start += size
    return found
