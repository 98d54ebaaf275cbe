"""Functions of one tensor applied to several at once, as ``torch.vmap`` does at a multiple of the price for small ones.

Private: ``_vmap_increment_nesting`` and the rest of ``torch._C._functorch``, on which ``torch.func`` is built; a
PyTorch without them takes one tensor at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_functorch: Any = getattr(torch._C, "_functorch", None)
_NEEDED = (
    *("_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim"),
    *("is_batchedtensor", "get_unwrapped", "maybe_get_bdim"),
)


def takes_several() -> bool:
    """Whether this PyTorch has what is needed."""
    return all(hasattr(_functorch, name) for name in _NEEDED)


@contextmanager
def without_slow_rules() -> Iterator[None]:
    """A context in which an operation that goes tensor by tensor raises its UserWarning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop", UserWarning)
        yield


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
