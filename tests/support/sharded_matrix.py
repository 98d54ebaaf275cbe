"""Operators on sharded vectors, without and with processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: a few large eigenvalues beside a bulk: a Lanczos method converges within a few restarts
SPECTRUM = torch.cat(
    [torch.linspace(0.1, 1, 145, dtype=torch.float64), torch.tensor([3.0, 5, 5, 9, -4])]
)


class ShardedMatrix:
    """A dense symmetric matrix of whose vectors each process holds some entries, in an order of its own.

    It has what an algorithm may ask for and nothing else. Its products gather, as those of a user may; what goes
    through ``inner`` is counted.

    Args:
        dense: ``[P, P]``.
        entries: the global indices of this process's entries.
    """

    def __init__(self, dense: Tensor, entries: Tensor) -> None:
        self.dense = dense
        self.entries = entries
        self.shape = tuple(dense.shape)
        self.dtype, self.device = dense.dtype, dense.device
        self.products = 0
        #: the processes; None for all of them, or none at all
        self.process_group: Any = None
        #: shape of every reduction
        self.reductions: list[tuple[int, ...]] = []

    def matvec(self, v: Tensor) -> Tensor:
        assert v.shape == self.entries.shape, "a vector that is not local"
        self.products += 1
        return self._times(v.unsqueeze(1))[:, 0]

    def matmat(self, V: Tensor) -> Tensor:
        assert V.shape[0] == len(self.entries), "columns that are not local"
        self.products += V.shape[1]
        return self._times(V)

    def _times(self, V: Tensor) -> Tensor:
        whole = V.new_zeros(self.shape[0], V.shape[1])
        whole[self.entries] = V
        return self.dense[self.entries] @ self._sum(whole)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape[0] == b.shape[0] == len(self.entries), "inner of vectors that are not local"
        found = a.T @ b
        self.reductions.append(tuple(found.shape))
        return self._sum(found)

    def _sum(self, t: Tensor) -> Tensor:
        t = t.contiguous()
        if dist.is_initialized():
            dist.all_reduce(t, group=self.process_group)
        return t


#: the rank of each entry: how P entries lie on W processes
LAYOUTS: dict[str, Any] = {
    "runs": lambda i, P, W: i * W // P,
    "scattered": lambda i, P, W: (i * 7 + i // 5) % W,
    "nothing on the first": lambda i, P, W: 1 + i % (W - 1),
    "all on the last": lambda i, P, W: torch.full_like(i, W - 1),
}


def sharded(dense: Tensor, layout: str, rank: int, world: int) -> ShardedMatrix:
    """The matrix with the entries of one rank, in descending order, so that the order matters too."""
    i = torch.arange(len(dense))
    mine = i[LAYOUTS[layout](i, len(dense), world) == rank]
    return ShardedMatrix(dense, mine.flip(0))


def dense(dtype: torch.dtype = torch.float64, spectrum: Tensor = SPECTRUM) -> Tensor:
    """The matrix of a spectrum, the same on every rank."""
    drawn = vector(len(spectrum), len(spectrum))
    rotation = torch.linalg.qr(drawn).Q
    matrix = (rotation * spectrum) @ rotation.T
    return ((matrix + matrix.T) / 2).to(dtype)


def vector(*shape: int) -> Tensor:
    """A random vector ``[P]``, or columns, the same on every rank."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class WholeMatrix:
    """The same matrix on whole vectors."""

    def __init__(self, dense: Tensor) -> None:
        self.dense, self.shape = dense, tuple(dense.shape)
        self.dtype, self.device = dense.dtype, dense.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.dense @ v

    def matmat(self, V: Tensor) -> Tensor:
        return self.dense @ V
