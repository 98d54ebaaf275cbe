"""Owners: which sample's output each element of a tensor can reach.

An array of sample numbers that broadcasts to the tensor's shape: of size 1 along every dimension that it does not
vary in, so that ``[N, 1, 1]`` says of a tensor ``[N, T, D]`` that samples lie along dimension 0. ``NOBODY`` marks
elements that reach no output; they may be counted to any sample, because their gradient is zero. If an element reaches
the outputs of two samples there are no owners, and every function here returns None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Owners = npt.NDArray[np.int64]
Shape = Sequence[int]

NOBODY = -1
#: the most elements that are numbered one by one; larger tensors have no owners
LIMIT = 1 << 24


def nobody(ndim: int) -> Owners:
    """Owners of a tensor that reaches no output."""
    return np.full((1,) * ndim, NOBODY, dtype=np.int64)


def constant(owners: Owners | None, ndim: int) -> Owners | None:
    """Owners of a tensor each of whose elements reaches every element of ``owners``."""
    one = along(owners, range(owners.ndim)) if owners is not None else None
    return None if one is None else one.reshape((1,) * ndim)


def merged(a: Owners | None, b: Owners | None) -> Owners | None:
    """Owners of a tensor that is used twice."""
    if a is None or b is None:
        return None
    both = (a >= 0) & (b >= 0)
    if bool((both & (a != b)).any()):
        return None
    return np.where(a >= 0, a, b)


def along(owners: Owners | None, dims: Iterable[int]) -> Owners | None:
    """The common owner along some dimensions, which are reduced to size 1."""
    for dim in dims:
        if owners is None:
            return None
        if owners.shape[dim] == 1:
            continue
        last = owners.max(dim, keepdims=True)
        if bool(((owners != last) & (owners >= 0)).any()):
            return None
        owners = last
    return owners


def compressed(owners: Owners) -> Owners:
    """The same owners with size 1 along each dimension in which they do not vary."""
    for dim, size in enumerate(owners.shape):
        if size > 1:
            one = along(owners, (dim,))
            owners = owners if one is None else one
    return owners


def summed_to(owners: Owners | None, shape: Shape) -> Owners | None:
    """Owners of a tensor that was broadcast, from those of the result."""
    if owners is None:
        return None
    lead = owners.ndim - len(shape)
    if lead < 0:
        return owners.reshape((1,) * -lead + owners.shape)
    dims = [d for d in range(owners.ndim) if d < lead or shape[d - lead] == 1]
    one = along(owners, dims)
    return None if one is None else one.reshape(one.shape[lead:])


def reshaped(owners: Owners | None, source: Shape, target: Shape) -> Owners | None:
    """Owners of a tensor of shape ``target``, given those of its elements in shape ``source``."""
    if owners is None:
        return None
    if math.prod(source) == 0:
        return nobody(len(target))
    sizes: list[int] = []  # of what varies, by dimension of the target
    kept: list[
        int
    ] = []  # the dimensions of the source expanded to their size where something varies
    i = j = 0
    while i < len(source) or j < len(target):
        first, begin = i, j
        here = there = 1
        while here != there or (i == first and j == begin):
            if i < len(source) and (here <= there or j == len(target)):
                here *= source[i]
                i += 1
            else:
                there *= target[j]
                j += 1
        varies = any(owners.shape[d] > 1 for d in range(first, i))
        kept += [source[d] if varies else 1 for d in range(first, i)]
        sizes += [target[d] if varies else 1 for d in range(begin, j)]
    return np.broadcast_to(owners, kept).reshape(sizes)


def expanded(owners: Owners, dim: int, size: int) -> Owners:
    """The owners expanded along a dimension."""
    shape = list(owners.shape)
    shape[dim] = size
    return np.broadcast_to(owners, shape)


def placed(owners: Owners | None, dim: int, size: int, where: slice | int) -> Owners | None:
    """Owners of a tensor of which a part along ``dim`` was used; an index puts the dimension in."""
    if owners is None:
        return None
    if isinstance(where, int):
        owners, where = np.expand_dims(owners, dim), slice(where, where + 1)
    if len(range(size)[where]) == size:
        return owners
    whole = np.full([*owners.shape[:dim], size, *owners.shape[dim + 1 :]], NOBODY, dtype=np.int64)
    whole[_at(whole, dim, where)] = owners
    return whole


def part(owners: Owners | None, dim: int, where: slice | int) -> Owners | None:
    """Owners of what was put into a tensor at a part of ``dim``; an index takes the dimension out."""
    if owners is None:
        return None
    if owners.shape[dim] == 1:
        return owners.squeeze(dim) if isinstance(where, int) else owners
    return owners[_at(owners, dim, where)]


def gathered_from(
    owners: Owners | None, positions: npt.NDArray[Any], shape: Shape
) -> Owners | None:
    """Owners of a tensor of ``shape`` whose elements at ``positions`` (flat) were read, by those of the result."""
    if owners is None or math.prod(shape) > LIMIT or positions.size > LIMIT:
        return None
    given = np.broadcast_to(owners, positions.shape)
    read = given >= 0
    position, owner = positions[read], given[read]
    found = np.full(math.prod(shape), NOBODY, dtype=np.int64)
    found[position] = owner
    if bool((found[position] != owner).any()):
        return None
    return found.reshape(tuple(shape))


def numbered(shape: Shape) -> npt.NDArray[np.int64] | None:
    """A tensor of ``shape`` with the number of each element in it; None if there are too many."""
    count = math.prod(shape)
    return None if count > LIMIT else np.arange(count).reshape(tuple(shape))


def _at(owners: Owners, dim: int, where: slice | int) -> tuple[slice | int, ...]:
    index: list[slice | int] = [slice(None)] * owners.ndim
    index[dim] = where
    return tuple(index)
