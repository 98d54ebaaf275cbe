"""Functions of one tensor applied to several at once, as ``torch.vmap`` does at a multiple of the price for small ones.

Private: ``_vmap_increment_nesting`` and the rest of ``torch._C._functorch``, on which ``torch.func`` is built; without
them everything here raises an AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_functorch = torch._C._functorch


@contextmanager
def one_for_all(count: int) -> Iterator[int]:
    """A context in which a tensor made by :func:`standing_for` stands for ``count``; yields the level for that."""
    level = _functorch._vmap_increment_nesting(count, "error")
    try:
        yield level
    finally:
        _functorch._vmap_decrement_nesting()


def standing_for(several: Tensor, level: int) -> Tensor:
    """What stands for each of the tensors along dimension 0."""
    return _functorch._add_batch_dim(several, 0, level)


def stands_for_several(t: Tensor) -> bool:
    """Whether a tensor stands for several."""
    return _functorch.is_batchedtensor(t)


def several_of(t: Tensor) -> Tensor:
    """The tensors that one stands for, along a new dimension 0."""
    return _functorch.get_unwrapped(t).movedim(_functorch.maybe_get_bdim(t), 0)
