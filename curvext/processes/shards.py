"""How tensors are cut among ranks, and vectors of which each rank holds its own entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.processes.group import Group
from curvext.torch_internals.fsdp import dtensor_of, is_dtensor

#: entries that are widened to float64 at a time
_PANEL = 1 << 18


@dataclass(frozen=True)
class Cut:
    """A shape that is cut along one dimension of length n into pieces of ⌈n/W⌉, the last ones shorter or empty.

    Args:
        shape: of the whole tensor; of a scalar (1,).
        dim: the dimension.
        ranks: W.
    """

    shape: torch.Size
    dim: int
    ranks: int

    def piece(self, whole: Tensor, rank: int) -> Tensor:
        """The view of a rank's piece of a tensor ``[*shape, ...]``."""
        return whole.narrow(self.dim, *self._range(rank))

    def piece_shape(self, rank: int) -> torch.Size:
        """The shape of a rank's piece."""
        return torch.Size(
            (*self.shape[: self.dim], self._range(rank)[1], *self.shape[self.dim + 1 :])
        )

    def _range(self, rank: int) -> tuple[int, int]:
        """Where a rank's piece begins, and its length."""
        n = self.shape[self.dim]
        each = -(-n // self.ranks)
        start = min(rank * each, n)
        return start, min(each, n - start)


@dataclass(frozen=True)
class Sharded:
    """A parameter, or a part of a vector that belongs to one.

    Args:
        shape: of the whole.
        cut: how it is cut.
        mesh, placements: those of its DTensor; None for a plain tensor, which every rank has whole.
    """

    shape: torch.Size
    cut: Cut
    mesh: Any = None
    placements: Any = None


class LocalVectors:
    """Vectors in ℝ^P of which each rank of a group holds P_r entries: those of its shards of the parameters.

    A local vector is the concatenation of the pieces of all parameters, each in row-major order. Of a parameter that
    every rank has whole, rank r holds the r-th piece along the first dimension.

    Args:
        parts: by name, in the order of the flat vector.
        group: the ranks among which they are cut.
    """

    def __init__(self, parts: Mapping[str, Sharded], group: Group) -> None:
        self._parts = parts
        self._group = group
        self._sizes = [part.cut.shape.numel() for part in parts.values()]
        #: P
        self.size = sum(self._sizes)
        #: P_r of each rank
        self.counts = [
            sum(part.cut.piece_shape(rank).numel() for part in parts.values())
            for rank in range(group.size)
        ]
        #: P_r of this rank
        self.count = self.counts[group.rank]
        self._entries: Tensor | None = None

    @property
    def trivial(self) -> bool:
        """Whether one rank of several holds every entry, so that its local vectors have the shape of whole ones."""
        return self.size in self.counts and not self._group.alone

    def entries(self, device: torch.device) -> Tensor:
        """The indices of this rank's entries in the flat vector, ``[P_r]``, int64."""
        if self._entries is None:
            self._entries = self.local(torch.arange(self.size, device="cpu"))
        return self._entries.to(device)

    # ------------------------------------------------------------------ from one form to another

    def local(self, whole: Tensor) -> Tensor:
        """This rank's entries of a flat vector ``[P]`` or ``[P, K]``."""
        blocks = self._blocks(whole)
        mine = [c.piece(b, self._group.rank) for c, b in zip(self._cuts(), blocks, strict=True)]
        return torch.cat([m.reshape(-1, *whole.shape[1:]) for m in mine])

    def whole(self, local: Tensor) -> Tensor:
        """The flat vector ``[P]`` or ``[P, K]`` of what each rank holds, by one gathering."""
        rows = self._group.rows(local.contiguous(), self.counts)
        if self._group.alone:
            return rows
        whole = rows.new_empty(self.size, *local.shape[1:])
        pieces = [
            cut.piece(block, rank)
            for rank in range(self._group.size)
            for cut, block in zip(self._cuts(), self._blocks(whole), strict=True)
        ]
        parts = rows.split([p.numel() // max(1, local[:1].numel()) for p in pieces])
        for piece, part in zip(pieces, parts, strict=True):
            piece.copy_(part.reshape(piece.shape))
        return whole

    def from_named(self, named: Mapping[str, Tensor]) -> Tensor:
        """The local vector of ``{name: DTensor}``; plain tensors where the parameter is one."""
        rank = self._group.rank
        mine = []
        for name, part in self._parts.items():
            t: Any = named[name].detach()
            piece = (
                t.to_local() if is_dtensor(t) else part.cut.piece(t.reshape(part.cut.shape), rank)
            )
            mine.append(piece.reshape(-1))
        return torch.cat(mine)

    def named(self, whole: Tensor) -> dict[str, Tensor]:
        """A flat vector ``[P]`` as ``{name: DTensor}`` in the placements of the parameters."""
        found = {}
        for (name, part), block in zip(self._parts.items(), self._blocks(whole), strict=True):
            if part.mesh is None:
                found[name] = block.reshape(part.shape)
            else:
                mine = part.cut.piece(block, self._group.rank).contiguous()
                found[name] = dtensor_of(mine, part.mesh, part.placements, part.shape)
        return found

    def misplaced(self, named: Mapping[str, Tensor]) -> str | None:
        """A name whose tensor does not lie as the parameter does; None where all do."""
        for name, part in self._parts.items():
            t: Any = named[name]
            if is_dtensor(t) != (part.mesh is not None):
                return name
            if is_dtensor(t) and (t.device_mesh, t.placements) != (part.mesh, part.placements):
                return name
        return None

    # ------------------------------------------------------------------ inner products

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """aᵀ b, ``[K, m]``, of local vectors ``[P_r, K]`` and ``[P_r, m]``, summed over the ranks by one reduction.

        In the dtype of sums, but summed in float64. Of whole vectors it is aᵀ b without a message.

        Raises:
            ValueError: they are neither all local nor all whole.
        """
        if not len(a) == len(b) or len(a) not in (self.count, self.size):
            raise ValueError(
                f"inner: expected vectors of the {self.count} entries of this process, or of all {self.size}, got "
                f"{list(a.shape)} and {list(b.shape)}"
            )
        columns = [t.unsqueeze(1) if t.ndim == 1 else t for t in (a, b)]
        total = torch.zeros(*(c.shape[1] for c in columns), dtype=torch.float64, device=a.device)
        if len(a) == self.count or not self.trivial:  # else another rank holds every entry
            for x, y in zip(*(c.split(_PANEL) for c in columns), strict=True):
                total += x.double().T @ y.double()
        if len(a) == self.count or self.trivial:
            self._group.sum(total)
        sums = dtype_of_sums(torch.promote_types(a.dtype, b.dtype))
        return total.to(sums).reshape(a.shape[1:] + b.shape[1:])

    def _cuts(self) -> list[Cut]:
        return [part.cut for part in self._parts.values()]

    def _blocks(self, whole: Tensor) -> Sequence[Tensor]:
        tail = whole.shape[1:]
        return [
            block.reshape(cut.shape + tail)
            for cut, block in zip(self._cuts(), whole.split(self._sizes), strict=True)
        ]
