"""One thread at a time has a model."""

from __future__ import annotations

import threading
import weakref

from torch import nn

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock of a model: a pass borrows its requires_grad, hooks and attributes, and risks keep graphs of it."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())
