"""What a pass changes of a model and restores: the requires_grad of parameters, and the caller's autocast.

Hooks are set aside by :mod:`curvext.torch_internals.hooks`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock of a model: a pass changes its requires_grad, hooks and attributes, so one thread at a time has it."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def requires_grad_only(
    selected: Iterable[Tensor], parameters: Sequence[Tensor]
) -> Iterator[list[tuple[Tensor, bool]]]:
    """A context in which the selected parameters, and no others, require grad.

    Yields:
        The parameters whose flag was changed, each with the flag it had.
    """
    chosen = {id(p) for p in selected}
    flags = [p.requires_grad for p in parameters]
    changed: list[tuple[Tensor, bool]] = []
    try:
        for p, flag in zip(parameters, flags, strict=True):
            if flag is not (id(p) in chosen):
                p.requires_grad_(not flag)
                changed.append((p, flag))
        yield changed
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            if p.requires_grad is not flag:
                p.requires_grad_(flag)


def current_autocast(kind: str) -> torch.dtype | None:
    """The dtype of autocast on a kind of device; None where it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@contextmanager
def autocast_anew(kind: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to a dtype with an empty cache of casts, which may be stale or lack a graph; nothing for None."""
    if dtype is None:
        yield
        return
    torch.clear_autocast_cache()
    try:
        with torch.autocast(kind, dtype):
            yield
    finally:
        torch.clear_autocast_cache()
