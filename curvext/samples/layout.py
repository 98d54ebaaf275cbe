"""Where samples lie in a tensor: a layer deep in a network may see ``[T, N, D]``, ``[N·T, D]`` or rows in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvext.samples.owners import Owners

#: the largest factor by which padding all samples to the longest may enlarge a tensor
_PADDING_LIMIT = 4


@dataclass(frozen=True)
class Layout:
    """The samples lie along dimension ``dim``, whose index is (n, rest) if ``major`` else (rest, n)."""

    dim: int
    major: bool

    def along(self, dim: int) -> Layout:
        """The same layout along another dimension."""
        return Layout(dim, self.major)

    def samples_first(self, x: Tensor, samples: int) -> Tensor:
        """``x`` as ``[N, ...]``: the sample dimension split off and moved to the front.

        The rest of the split dimension stays in place with size ``shape[dim] / N``.
        """
        if x.ndim == 0:  # a scalar, so of the only sample
            return x.unsqueeze(0)
        sizes = list(x.shape)
        rest = sizes[self.dim] // samples
        sizes[self.dim : self.dim + 1] = (samples, rest) if self.major else (rest, samples)
        split = x.view(sizes)  # always possible: one dimension becomes two
        first = self.dim if self.major else self.dim + 1
        return split.movedim(first, 0) if first else split


class RaggedLayout(Layout):
    """Each entry along dimension ``dim`` belongs to an arbitrary sample, or to none.

    Samples with fewer entries than the longest are padded with zeros, which add nothing to a sum over entries.

    Args:
        dim: the dimension.
        where: ``[N, S]``, the entries of each sample, padded with −1.
    """

    where: Tensor

    def __init__(self, dim: int, where: Tensor) -> None:
        super().__init__(dim, True)
        object.__setattr__(self, "where", where)

    def along(self, dim: int) -> RaggedLayout:
        """The same layout along another dimension."""
        return RaggedLayout(dim, self.where)

    def samples_first(self, x: Tensor, samples: int) -> Tensor:
        """``x`` as ``[N, ...]`` with size S in place of the dimension."""
        where = self.where.to(x.device)
        rows = x.movedim(self.dim, 0)
        taken = rows.index_select(0, where.clamp(min=0).flatten())
        missing = (where < 0).flatten()
        taken.masked_fill_(missing.view(-1, *[1] * (taken.ndim - 1)), 0)
        return taken.view(*where.shape, *rows.shape[1:]).movedim(1, self.dim + 1)


def one_sample(shape: Sequence[int]) -> tuple[Layout, ...]:
    """Layouts of a tensor of a single sample, along any dimension."""
    return tuple(Layout(d, True) for d in range(max(1, len(shape))))


def layouts_of(owners: Owners, shape: Sequence[int], samples: int) -> tuple[Layout, ...]:
    """The layout of a tensor of this shape with these owners; empty where they form none."""
    varying = [d for d, size in enumerate(owners.shape) if size > 1]
    if len(varying) > 1 or not shape or 0 in shape:
        return ()
    dim = varying[0] if varying else 0
    entries = np.broadcast_to(owners.reshape(-1), (shape[dim],))
    rest = shape[dim] // samples
    if rest * samples == shape[dim]:
        number = np.arange(shape[dim])
        for major, regular in ((True, number // rest), (False, number % samples)):
            if np.array_equal(np.where(entries < 0, regular, entries), regular):
                return (Layout(dim, major),)
    return _ragged(dim, entries, samples)


def _ragged(dim: int, entries: Owners, samples: int) -> tuple[Layout, ...]:
    counts = np.bincount(entries[entries >= 0], minlength=samples)
    longest = int(counts.max(initial=0))
    if longest == 0 or longest * samples > _PADDING_LIMIT * max(len(entries), samples):
        return ()
    order = np.argsort(entries, kind="stable")[len(entries) - int(counts.sum()) :]
    place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    where = np.full((samples, longest), -1, dtype=np.int64)
    where[entries[order], place] = order
    return (RaggedLayout(dim, torch.from_numpy(where)),)
