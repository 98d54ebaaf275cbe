"""What threads share: process-wide switches of PyTorch, and models."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

#: reads a switch, sets it, and what it is held at
Switch = tuple[Callable[[], Any], Callable[[Any], None], Any]


class Held:
    """A context in which switches have values; what they were before comes back when the last thread leaves.

    Threads that saved and restored it each for itself would put back what another had set.

    Args:
        switches: how to read and set each, and what it is held at.
    """

    def __init__(self, *switches: Switch) -> None:
        self._switches = switches
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [get() for get, _, _ in self._switches]
                for _, set_to, value in self._switches:
                    set_to(value)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for (_, set_to, _), before in zip(self._switches, self._before, strict=True):
                    set_to(before)


_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock of a model: whose requires_grad, hooks and attributes a pass borrows, and what risks of it have kept."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def _attribute(owner: Any, name: str, value: Any) -> Switch:
    return lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value


WITHOUT_CUDNN = Held(_attribute(torch.backends.cudnn, "enabled", False))
WITHOUT_MKLDNN = Held(_attribute(torch.backends.mkldnn, "enabled", False))
#: what a pass needs: convolutions by algorithms that give the same bits each time; parametrised weights computed in
#: every forward pass, as one that is kept belongs to another graph; and no inference path of nn.TransformerEncoder and
#: nn.MultiheadAttention, which computes something else, zeros at padding, where no parameter of theirs is trained
FOR_A_PASS = Held(
    _attribute(torch.backends.cudnn, "deterministic", True),
    _attribute(parametrize, "_cache_enabled", 0),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
)
