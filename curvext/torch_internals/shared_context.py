"""One change that several threads want at once: threads that each saved and restored it would put back each other's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class SharedContext:
    """A context that the first thread enters and the last one leaves; a decorator of generators, like contextmanager.

    Args:
        change: makes a change, yields, and takes it back.
    """

    def __init__(self, change: Callable[[], Iterator[None]]) -> None:
        self._change = contextmanager(change)
        self._lock = threading.Lock()
        self._inside = 0
        self._here = threading.local()

    def __call__(self) -> SharedContext:
        return self

    def entered_here(self) -> bool:
        """Whether the calling thread is inside."""
        return getattr(self._here, "depth", 0) > 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._context: AbstractContextManager[None] = self._change()
                self._context.__enter__()
            self._inside += 1
        self._here.depth = getattr(self._here, "depth", 0) + 1

    def __exit__(self, *error: object) -> None:
        self._here.depth -= 1
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._context.__exit__(None, None, None)
