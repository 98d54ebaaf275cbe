"""Operations that read or write elements by indices, whose flow is read from the indices of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curvext.operations.flow import At, Flow, Inputs, Outputs, each
from curvext.operations.node import dimension
from curvext.operations.operation import Operation
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def _index(at: At, out: Outputs) -> Inputs:
    """x[indices]."""
    shape = at.shape(0)
    look = _Lookup(at.values("indices"), shape)
    if out[0] is None:
        return [None]
    small = look.shape_for(out[0])
    numbers = own.numbered(small)
    if numbers is None:
        return [None]
    return [own.gathered_from(out[0], look(numbers), small)]


def _index_put(at: At, out: Outputs) -> Inputs:
    """x[indices] = values."""
    if len(at.inputs) < 2 or not at.inputs[1] or out[0] is None:
        return each(at, lambda i: out[0] if i == 0 else None)
    look = _Lookup(at.values("indices"), at.out_shape())
    sizes = zip(at.out_shape(), out[0].shape, strict=True)
    whole = np.broadcast_to(out[0], [n if d in look.dims else m for d, (n, m) in enumerate(sizes)])
    return each(at, lambda i: own.summed_to(look(whole), at.shape(1)) if i else out[0])


class _Lookup:
    """Advanced indexing by arrays along some dimensions.

    Args:
        indices: one array for each dimension, or for several if it is a mask; None for the whole dimension.
        shape: of what is indexed.
    """

    def __init__(self, indices: Sequence[Any], shape: Sequence[int]) -> None:
        self._shape = shape
        self._by_dim: list[Any] = []
        for index in indices:
            if index is None:
                self._by_dim.append(None)
            elif index.dtype == bool:
                self._by_dim += list(index.nonzero())
            else:
                self._by_dim.append(index)
        self._by_dim += [None] * (len(shape) - len(self._by_dim))
        #: dimensions that are indexed
        self.dims = [d for d, index in enumerate(self._by_dim) if index is not None]

    def __call__(self, array: Any) -> Any:
        return array[tuple(slice(None) if i is None else i for i in self._by_dim)]

    def shape_for(self, owners: Owners) -> list[int]:
        """The shape of what is indexed, with size 1 for each dimension that is taken whole and does not matter."""
        width = np.broadcast_shapes(*(self._by_dim[d].shape for d in self.dims))
        together = self.dims == list(range(self.dims[0], self.dims[-1] + 1))
        first = self.dims[0] if together else 0
        rest = [d for d in range(len(self._shape)) if d not in self.dims]
        place = {d: n if n < first else n + len(width) for n, d in enumerate(rest)}
        return [
            1 if d in place and owners.shape[place[d]] == 1 else size
            for d, size in enumerate(self._shape)
        ]


def _index_select(at: At, out: Outputs) -> Inputs:
    """x.index_select(dim, index)."""
    shape = at.shape(0)
    dim = dimension(at.attribute("dim"), len(shape))
    if out[0] is None:
        return [None]
    small = [s if d == dim else o for d, (s, o) in enumerate(zip(shape, out[0].shape, strict=True))]
    numbers = own.numbered(small)
    if numbers is None:
        return [None]
    return [own.gathered_from(out[0], numbers.take(at.values("index").reshape(-1), dim), small)]


def _index_add(at: At, out: Outputs) -> Inputs:
    """x.index_add(dim, index, source), and copies by index."""
    dim = dimension(at.attribute("dim"), len(at.out_shape()))

    def of(i: int) -> Owners | None:
        if i == 0 or out[0] is None:
            return out[0]
        if out[0].shape[dim] == 1:
            return out[0]
        return (
            out[0]
            .take(at.values("index").reshape(-1), dim)
            .reshape([*out[0].shape[:dim], -1, *out[0].shape[dim + 1 :]])
        )

    return each(at, of)


def _gathered(name: str) -> Flow:
    """x.gather(dim, index), the index saved under this name; sorts and the largest entries are such too."""

    def rule(at: At, out: Outputs) -> Inputs:
        shape, owners = at.shape(0), out[0]
        if owners is None:
            return [None]
        dim = dimension(at.attribute("dim"), len(shape))
        if owners.shape[dim] == 1:
            for d, size in enumerate(at.out_shape()):
                if d != dim and owners is not None and owners.shape[d] > 1:
                    owners = own.placed(owners, d, shape[d], slice(0, size))
            return [owners]
        index = at.values(name, thin=True)
        numbers = own.numbered(
            [
                size if d == dim or owners.shape[d] > 1 or index.shape[d] > 1 else 1
                for d, size in enumerate(shape)
            ]
        )
        if numbers is None:
            return [None]
        read = numbers[_along(index, dim, np.broadcast_shapes(index.shape, owners.shape))]
        return [own.gathered_from(owners, read, numbers.shape)]

    return rule


def _scattered(at: At, out: Outputs) -> Inputs:
    """x.scatter(dim, index, source), and sums by index; the source has the shape of the index."""
    dim = dimension(at.attribute("dim"), len(at.out_shape()))

    def of(i: int) -> Owners | None:
        owners = out[0]
        if i == 0:
            return owners
        for d, size in enumerate(at.shape(i)):
            if d != dim:
                owners = own.part(owners, d, slice(0, size))
        if owners is None or owners.shape[dim] == 1:
            return owners
        index = at.values("index", thin=True)
        return owners[_along(index, dim, np.broadcast_shapes(index.shape, _but(owners.shape, dim)))]

    return each(at, of)


def _but(shape: Sequence[int], dim: int) -> list[int]:
    """A shape with size 1 along one dimension."""
    return [1 if d == dim else size for d, size in enumerate(shape)]


def _along(index: Any, dim: int, reach: Sequence[int]) -> tuple[Any, ...]:
    """An index along one dimension as one by all, the others as they are."""
    by_dim: list[Any] = [
        np.arange(n).reshape([-1 if e == d else 1 for e in range(len(reach))])
        for d, n in enumerate(reach)
    ]
    by_dim[dim] = index
    return tuple(by_dim)


def _masked_select(at: At, out: Outputs) -> Inputs:
    """x[mask] in a row, x and the mask broadcast to each other."""
    mask, shape = at.values("mask"), at.shape(0)
    numbers = own.numbered(shape)
    if numbers is None:
        return [None]
    whole, chosen = np.broadcast_arrays(numbers, mask)
    return [own.gathered_from(out[0], whole[chosen], shape)]


def _masked_scatter(at: At, out: Outputs) -> Inputs:
    """The elements of a source, in a row, in the places of a mask."""

    def of(i: int) -> Owners | None:
        if out[0] is None:
            return None
        if i == 0:
            return own.summed_to(out[0], at.shape(0))
        mask = at.values("mask")
        if own.numbered(at.out_shape()) is None:
            return None
        taken = np.broadcast_to(out[0], at.out_shape())[np.broadcast_to(mask, at.out_shape())]
        found = np.full(int(np.prod(at.shape(i))), own.NOBODY, dtype=np.int64)
        found[: len(taken)] = taken
        return found.reshape(at.shape(i))

    return each(at, of)


def _take(at: At, out: Outputs) -> Inputs:
    """Elements by their numbers."""
    numbers = own.numbered(at.shape(0))
    if numbers is None:
        return [None]
    return [own.gathered_from(out[0], numbers.reshape(-1)[at.values("index")], at.shape(0))]


_FLOWS: dict[str, Flow] = {
    "GatherBackward0": _gathered("index"),
    "IndexAddBackward0": _index_add,
    "IndexBackward0": _index,
    "IndexCopyBackward0": _index_add,
    "IndexPutBackward0": _index_put,
    "IndexPutImplBackward0": _index_put,
    "IndexSelectBackward0": _index_select,
    "MaskedScatterBackward0": _masked_scatter,
    "MaskedSelectBackward0": _masked_select,
    "ScatterAddBackward0": _scattered,
    "ScatterBackward0": _scattered,
    "ScatterBackward1": _scattered,
    "ScatterReduceBackward0": _scattered,
    "SortBackward0": _gathered("indices"),
    "SortBackward1": _gathered("indices"),
    "TakeBackward0": _take,
    "TopkBackward0": _gathered("indices"),
    "UnsafeIndexBackward0": _index,
    "UnsafeIndexPutBackward0": _index_put,
}

OPERATIONS = {name: Operation(flow=flow) for name, flow in _FLOWS.items()}
