"""Batches: what counts as one, and iterating over them without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from curvext.arguments import as_integer
from curvext.torch_internals.tensors import leaves_of, map_leaves


class Batches:
    """A re-iterable view of the user's data: one batch, or many.

    One batch is a pair ``(x, y)``, a namedtuple of two, or a mapping; anything else must be a
    re-iterable of batches such as a list or a ``DataLoader``.

    Args:
        data: the user's.
        may_be_empty: whether there may be no batch, as where other processes have some.
        most: at most so many batches, the first, are read; None for all.

    Raises:
        TypeError: a one-shot iterator, a ``Dataset`` without a loader, or no data at all.
        ValueError: the data is empty, or ``most`` is no integer of at least 1.
    """

    def __init__(self, data: Any, may_be_empty: bool = False, most: int | None = None) -> None:
        #: at most so many batches, the first, are read; None for all
        self._most = None if most is None else as_integer("max_batches", most, 1)
        self.single = is_batch(data)
        if self.single:
            data = [data]
        elif isinstance(data, Iterator):
            raise TypeError(
                f"data: a one-shot {type(data).__name__} can be read only once, but every product reads "
                "the data again; pass list(data) or a DataLoader. (fisher_diagonal, ggn_diagonal and "
                "per_sample_gradient_norms make one pass, and take it)"
            )
        elif isinstance(data, Dataset) and not hasattr(data, "batch_size"):
            raise TypeError(
                "data: got a Dataset; wrap it as torch.utils.data.DataLoader(dataset, batch_size=...)"
            )
        elif isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise TypeError(
                "data: expected a batch (x, y), a mapping with 'labels', or a re-iterable of batches, "
                f"got {type(data).__name__}"
            )
        self._data = data
        #: in memory, so that batch i is the same object on every pass
        self.resident = isinstance(data, (list, tuple))
        if self.resident and len(data) == 0 and not may_be_empty:
            raise ValueError("data: empty; at least one batch is needed")

    @property
    def held(self) -> list[Any] | None:
        """The batches in memory; None where a loader makes them."""
        return list(self._data[: self._most]) if self.resident else None

    @property
    def count(self) -> int | None:
        """How many batches there are, where that is known."""
        there = len(self._data) if hasattr(self._data, "__len__") else None
        return there if there is None or self._most is None else min(there, self._most)

    @property
    def likely_samples(self) -> int | None:
        """How many samples there are, by the first tensor of each batch or the length of a sampler; None if unknown."""
        if self.resident:
            found = [tensors(batch) for batch in self._data[: self._most]]
            return sum(int(t[0].shape[0]) if t and t[0].ndim else 1 for t in found)
        if self._most is not None:
            return None
        sampler = getattr(self._data, "sampler", None)
        return len(sampler) if isinstance(sampler, Sized) else None

    def __iter__(self) -> Iterator[Any]:
        """The batches, in order. A loader draws random numbers from copies of the global generator and of its own."""
        if self.resident:
            yield from self._data[: self._most]
            return
        yield from islice(self._loaded(), self._most)

    def _loaded(self) -> Iterator[Any]:
        generators = _generators(self._data)
        private = [g.get_state() for g in generators]
        iterator = None
        while True:
            outside = [g.get_state() for g in generators]
            _set_states(generators, private)
            try:
                iterator = iter(self._data) if iterator is None else iterator
                batch = next(iterator, _END)
                private = [g.get_state() for g in generators]
            finally:
                _set_states(generators, outside)
            if batch is _END:
                return
            yield batch


class OnePass:
    """A one-shot iterator of batches as data that can be read once.

    Args:
        iterator: of batches; consumed by the first pass.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator: Iterator[Any] | None = iterator

    def __iter__(self) -> Iterator[Any]:
        """The batches; raises a TypeError at the second pass."""
        if self._iterator is None:
            raise TypeError(
                "data: this needs a second pass over a one-shot iterator, which the first one has consumed; pass "
                "list(data) or a DataLoader"
            )
        iterator, self._iterator = self._iterator, None
        return iterator


def for_one_pass(data: Any) -> Any:
    """The data, where an iterator among them may be read once."""
    return OnePass(data) if isinstance(data, Iterator) else data


def _generators(loader: Any) -> list[torch.Generator]:
    """The global generator, and those that a loader and its sampler have for themselves."""
    own = [
        getattr(owner, "generator", None) for owner in (loader, getattr(loader, "sampler", None))
    ]
    found = [torch.default_generator, *(g for g in own if isinstance(g, torch.Generator))]
    return list(dict.fromkeys(found))


def _set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


_END = object()


def is_batch(data: Any) -> bool:
    """Whether ``data`` is one batch rather than a collection of batches."""
    if isinstance(data, Mapping) or hasattr(data, "_fields"):
        return True
    if not isinstance(data, (tuple, list)) or not data:
        return False
    if isinstance(data[0], Tensor):
        return True
    return isinstance(data, tuple) and len(data) > 1 and isinstance(data[1], Tensor)


def tensors(batch: Any) -> list[Tensor]:
    """All tensors in a batch, in a fixed order."""
    if type(batch) is tuple and all(type(t) is Tensor for t in batch):  # without a walk
        return list(batch)
    # Hugging Face's BatchEncoding is a mapping that pytree does not know
    if isinstance(batch, Mapping):
        return [t for value in batch.values() for t in tensors(value)]
    return [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)]


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor changed."""
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    return map_leaves(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def sample(batch: Any, index: int, count: int) -> Any:
    """Sample ``index`` of a batch of ``count``: every tensor with ``count`` rows is cut to one row."""

    def cut(t: Tensor) -> Tensor:
        return t[index : index + 1] if t.ndim > 0 and t.shape[0] == count else t

    return mapped(batch, cut)
