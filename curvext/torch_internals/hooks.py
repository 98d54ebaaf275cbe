"""Hooks on tensors and modules: counted, left out, or set aside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils import module_tracker
from torch.utils.hooks import RemovableHandle

from curvext.torch_internals.shared_context import SharedContext

#: the tables of a module's forward hooks, by attribute. Private: these names; an AttributeError without them
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
#: those of all modules of the process. Private: these names; an AttributeError at import without them
GLOBAL_FORWARD_HOOKS = (_module._global_forward_hooks, _module._global_forward_pre_hooks)


def hooks_made() -> int:
    """The number of hooks registered in this process so far.

    A hook on a tensor belongs to a node, and PyTorch does not expose which nodes have hooks. But each hook has a
    handle, and handles are numbered. Hooks from other threads count too.

    Private: ``RemovableHandle.next_id``; an AttributeError without it.
    """
    return RemovableHandle.next_id


class WithoutTensorHooks(torch.overrides.TorchFunctionMode):
    """A forward pass that leaves out the hooks it puts on tensors by ``register_hook``.

    Private: the attributes of a ``RemovableHandle``, of which one is made that no hook has; if they change, removing
    it raises an AttributeError.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.register_hook:
            handle = RemovableHandle.__new__(RemovableHandle)  # not counted
            handle.hooks_dict_ref = dict  # type: ignore[assignment]  # called, it gives no hooks
            handle.extra_dict_ref = ()
            handle.id = -1
            return handle
        return func(*args, **(kwargs or {}))


class _NoHandle:
    def remove(self) -> None:
        """Does nothing: there is no hook to remove."""


@SharedContext
def without_module_trackers() -> Iterator[None]:
    """``FlopCounterMode`` puts no hooks on the tensors of this thread: by them it tells modules apart in a backward.

    Private: that ``ModuleTracker`` calls ``register_multi_grad_hook`` by its name in ``torch.utils.module_tracker``. If
    it no longer does, its hooks count as the model's: products are slower inside a FlopCounterMode, and H is refused.
    """
    register: Any = module_tracker.register_multi_grad_hook

    def register_elsewhere(*args: Any, **kwargs: Any) -> Any:
        if without_module_trackers.entered_here():
            return _NoHandle()
        return register(*args, **kwargs)

    module_tracker.register_multi_grad_hook = register_elsewhere
    try:
        yield
    finally:
        module_tracker.register_multi_grad_hook = register


def has_backward_hooks(owner: Tensor | nn.Module) -> bool:
    """Whether a leaf or a module has hooks on its gradient.

    Private: ``_backward_hooks`` of both and ``_backward_pre_hooks`` of modules; an AttributeError without them.
    """
    if isinstance(owner, nn.Module):
        return bool(owner._backward_hooks or owner._backward_pre_hooks)
    return bool(owner._backward_hooks)


def have_backward_hooks(parameters: Sequence[Tensor], modules: Sequence[nn.Module]) -> bool:
    """Whether any of some leaves and modules has. Private: as :func:`has_backward_hooks`."""
    return any([p._backward_hooks for p in parameters]) or any(
        [m._backward_hooks or m._backward_pre_hooks for m in modules]
    )


@contextmanager
def backward_hooks_set_aside(
    parameters: Sequence[Tensor], modules: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Backward passes without the hooks of some leaves and modules.

    A leaf's hooks belong to the leaf, so a concurrent backward pass of another thread skips them too; the model's lock
    keeps out passes of this library.

    Private: that setting ``_backward_hooks`` of a leaf to None takes its hooks out of the engine, and setting the
    table again puts them back; ``_backward_hooks`` and ``_backward_pre_hooks`` of modules. If they change, gradients
    are edited, which ``tests/test_torch_internals.py`` looks at.
    """
    leaves = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    hooked = [
        (m, m._backward_hooks, m._backward_pre_hooks) for m in modules if has_backward_hooks(m)
    ]
    try:
        for p, _ in leaves:
            p._backward_hooks = None
        for m, _, _ in hooked:
            m._backward_hooks, m._backward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for m, after, before in hooked:
            m._backward_hooks, m._backward_pre_hooks = after, before
        for p, hooks in leaves:
            p._backward_hooks = hooks
