"""What a pass changes and restores: modes of PyTorch, hooks, the requires_grad of parameters, the caller's autocast."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from curvext.torch_internals.hooks import backward_hooks_set_aside, have_backward_hooks
from curvext.torch_internals.switches import plain_forward

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock of a model: a pass changes its requires_grad, hooks and attributes, so one thread at a time has it."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def set_apart(
    parameters: Sequence[Tensor], modules: Sequence[nn.Module], selected: Iterable[Tensor]
) -> Iterator[list[tuple[Tensor, bool]]]:
    """A context for passes: gradients of the selected parameters and of no others, as PyTorch computes them.

    Only what is not so already is switched.

    Yields:
        The parameters whose requires_grad was changed, each with what it was.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        stack.enter_context(plain_forward())
        if have_backward_hooks(parameters, modules):
            stack.enter_context(backward_hooks_set_aside(parameters, modules))
        yield stack.enter_context(requires_grad_only(selected, parameters))


@contextmanager
def requires_grad_only(
    selected: Iterable[Tensor], parameters: Sequence[Tensor]
) -> Iterator[list[tuple[Tensor, bool]]]:
    """A context in which the selected parameters, and no others, require grad.

    Yields:
        The parameters whose flag was changed, each with the flag it had.
    """
    chosen = {id(p) for p in selected}
    wanted = [id(p) in chosen for p in parameters]
    flags = [p.requires_grad for p in parameters]
    changed: list[tuple[Tensor, bool]] = []
    try:
        if flags != wanted:
            for p, flag, other in zip(parameters, flags, wanted, strict=True):
                if flag is not other:
                    p.requires_grad_(other)
                    changed.append((p, flag))
        yield changed
    finally:
        if flags != [p.requires_grad for p in parameters]:
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
