"""Batches: what counts as one, and iterating over them without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset


class Batches:
    """A re-iterable view of the user's data: one batch, or many.

    One batch is a pair ``(x, y)``, a namedtuple of two, or a mapping; anything else must be a
    re-iterable of batches such as a list or a ``DataLoader``.

    Raises:
        TypeError: a one-shot iterator, a ``Dataset`` without a loader, or no data at all.
        ValueError: the data is empty.
    """

    def __init__(self, data: Any) -> None:
        self.single = is_batch(data)
        if self.single:
            data = [data]
        elif isinstance(data, Iterator):
            raise TypeError(
                f"data: a one-shot {type(data).__name__} can be read only once, but every product reads "
                "the data again; pass list(data) or a DataLoader"
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
        if self.resident and len(data) == 0:
            raise ValueError("data: empty; at least one batch is needed")

    @property
    def count(self) -> int | None:
        """How many batches there are, where that is known."""
        return len(self._data) if hasattr(self._data, "__len__") else None

    def __iter__(self) -> Iterator[Any]:
        """The batches, in order. A loader draws random numbers from a copy of the global generator."""
        if self.resident:
            yield from self._data
            return
        private = torch.get_rng_state()
        iterator = None
        while True:
            outside = torch.get_rng_state()
            torch.set_rng_state(private)
            try:
                iterator = iter(self._data) if iterator is None else iterator
                batch = next(iterator, _END)
                private = torch.get_rng_state()
            finally:
                torch.set_rng_state(outside)
            if batch is _END:
                return
            yield batch


_END = object()


def is_batch(data: Any) -> bool:
    """Whether ``data`` is one batch rather than a collection of batches."""
    if isinstance(data, Mapping) or hasattr(data, "_fields"):
        return True
    if not isinstance(data, (tuple, list)) or not data:
        return False
    if isinstance(data[0], Tensor):
        return True
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)


def tensors(batch: Any) -> list[Tensor]:
    """All tensors in a batch, in a fixed order."""
    if isinstance(
        batch, Mapping
    ):  # Hugging Face's BatchEncoding is a mapping that pytree does not know
        return [t for value in batch.values() for t in tensors(value)]
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def sample(batch: Any, index: int, count: int) -> Any:
    """Sample ``index`` of a batch of ``count``: every tensor with ``count`` rows is cut to one row."""

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == count:
            return leaf[index : index + 1]
        return leaf

    if isinstance(batch, Mapping):
        return {key: sample(value, index, count) for key, value in batch.items()}
    return pytree.tree_map(cut, batch)


def fingerprint(batch: Any) -> int:
    """A 64-bit sum over the bits of all tensors: cheap, and independent of the order of samples."""
    total = 0
    for t in tensors(batch):
        row_bytes = t[:1].numel() * t.element_size() if t.ndim else 0
        total += bit_sum(t, whole_words=row_bytes % 8 == 0) + 1000003 * t.numel()
    return total & 0xFFFFFFFFFFFFFFFF


_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(t: Tensor, whole_words: bool = True) -> int:
    """The sum of a tensor's bits read as integers: changes with almost any change of content.

    Args:
        t: the tensor.
        whole_words: read eight bytes at a time, which needs no widening and so runs at the speed of
            memory; otherwise element by element, so that any order of elements gives the same sum.
    """
    return sum(int(part) for part in _bit_parts(t, whole_words))


def bit_sums(several: Sequence[Tensor]) -> list[int]:
    """:func:`bit_sum` of each of some tensors; a device is waited for once, however many there are."""
    parts = [_bit_parts(t, True) for t in several]
    flat = [part for some in parts for part in some]
    if not flat:
        return []
    found = iter(torch.stack([part.to(flat[0].device) for part in flat]).tolist())
    return [sum(next(found) for _ in some) for some in parts]


def _bit_parts(t: Tensor, whole_words: bool) -> list[Tensor]:
    """The sum of a tensor's bits in one or two parts, scalars of int64."""
    t = t.detach()
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.dtype is torch.bool:
        return [t.sum()]
    flat = t.contiguous().view(-1)
    words = (
        flat.numel() * flat.element_size() // 8 if whole_words and flat.data_ptr() % 8 == 0 else 0
    )
    split = words * 8 // flat.element_size()
    parts = [flat[:split].view(torch.int64).sum()] if words else []
    if not words or split < flat.numel():
        parts.append(flat[split:].view(_WORD[t.element_size()]).sum(dtype=torch.int64))
    return parts
