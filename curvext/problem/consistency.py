"""Checks that every pass reads the same data, and where needed in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from curvext.fingerprints import sample_hashes
from curvext.torch_internals.tensors import version_of


class PassRecord:
    """What one pass has read so far; passes may be nested.

    Args:
        resident: whether the data lies in memory, so that each pass reads the same tensors; else a loader makes them.
    """

    def __init__(self, resident: bool) -> None:
        self._resident = resident
        self.content = 0
        self.keys: list[int] = []

    def key_of(self, inside: list[Tensor]) -> int:
        """A key that changes with the tensors of a batch; for a loader's batch with their values and order."""
        if self._resident:
            return identity_of(inside)
        content, key = sample_hashes(inside)
        self.content = (self.content + content) & 0xFFFFFFFFFFFFFFFF
        self.keys.append(key)
        return key


class DataCheck:
    """Compares each pass with earlier ones: refuses other data, and another order where the order matters."""

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None
        #: quantities that depend on the order of samples → the order in their last pass
        self._orders: dict[str, int] = {}
        self._in_order: str | None = None

    def end(self, record: PassRecord, count: int, some: bool = True) -> None:
        """A pass over ``count`` samples ends, of which there must be ``some``.

        Raises:
            ValueError: there were none, or others than in the pass before; or, inside :meth:`in_order`, their order
                differs.
        """
        if some and count == 0:
            raise ValueError("data: no batch has a sample; at least one is needed")
        now, order = (count, record.content), hash(tuple(record.keys))
        if self._before is not None and self._before != now:
            raise ValueError(
                f"data: this pass gave other samples than the one before ({self._before[0]} then {count} samples, "
                "or changed content); the risk needs fixed data: switch off random augmentation and sampling with "
                "replacement or by random weights, or pass list(loader)"
            )
        self._before = now
        if self._in_order is not None and self._orders.setdefault(self._in_order, order) != order:
            raise ValueError(
                f"data: this pass gave the samples in another order than the one before, and {self._in_order} depend "
                "on it; pass a loader with shuffle=False, or list(loader)"
            )

    @contextmanager
    def in_order(self, what: str, always: bool = False) -> Iterator[None]:
        """Passes inside must read the samples in one order, because ``what``, a plural for the error, depend on it.

        With ``always`` it is the order of earlier passes for the same ``what``.
        """
        if not always:
            self._orders.pop(what, None)
        before, self._in_order = self._in_order, what
        try:
            yield
        finally:
            self._in_order = before

    def forget(self) -> None:
        """Accepts other samples in the next pass."""
        self._before = None


def identity_of(inside: list[Tensor]) -> int:
    """A key that changes when the tensors of a batch in memory are replaced or written to."""
    return hash(tuple([(t.data_ptr(), version_of(t), t.stride(), t.shape) for t in inside]))
