"""Models under ``torch.distributed.fsdp.fully_shard``: their modules, sharded parameters, settings and forward hooks.

Private, each with an AttributeError if it is gone: ``FSDPModule._get_fsdp_state()``; of that state
``_fsdp_param_groups`` (``_fsdp_param_group`` in older versions), ``_mp_policy``, ``_pre_forward`` and
``_post_forward``, and the handles of the hooks that call these, ``_pre_forward_hook_handle`` and
``_post_forward_hook_handle``; of a group ``fsdp_params``; of such a parameter ``sharded_param``.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvext.torch_internals.hooks import FORWARD_HOOKS


def is_dtensor(t: object) -> bool:
    """Whether a tensor is a DTensor, without the import, which takes seconds."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(t, tensor.DTensor)


def dtensor_of(local: Tensor, mesh: Any, placements: Any, shape: torch.Size) -> Tensor:
    """The DTensor of this rank's piece of a contiguous tensor, without a message."""
    strides = torch.empty(shape, device="meta").stride()
    found: Tensor = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        local, mesh, placements, run_check=False, shape=shape, stride=strides
    )
    return found


def placement_kinds(t: Any) -> list[tuple[str, int]]:
    """The kind of each placement of a DTensor by its name, and its dimension, or -1."""
    return [(type(p).__name__, getattr(p, "dim", -1)) for p in t.placements]


def fully_sharded_modules(model: nn.Module) -> list[nn.Module]:
    """The modules to which ``fully_shard`` was applied."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not hasattr(fsdp, "FSDPModule"):  # public since torch 2.6
        return []
    return [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)]


def sharded_parameters(modules: Iterable[nn.Module]) -> list[tuple[Tensor, object]]:
    """The sharded parameters of modules under ``fully_shard``, whichever are in their place now.

    Each with a token that is equal for those that were one tied parameter before, where this version of PyTorch notes
    that: ``_orig_param_uid``.
    """
    return [
        (p.sharded_param, getattr(p, "_orig_param_uid", id(p)))
        for state in _states(modules)
        for group in _groups(state)
        for p in group.fsdp_params
    ]


def compute_dtypes(module: nn.Module) -> tuple[torch.dtype | None, torch.dtype | None]:
    """The ``param_dtype`` and ``output_dtype`` of a module's MixedPrecisionPolicy; None where nothing is cast."""
    policy = _state(module)._mp_policy
    return policy.param_dtype, policy.output_dtype


@contextmanager
def forward_hooks_set_aside(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Forward passes without what ``fully_shard`` does before and after them: gather, free, reduce in a backward pass.

    Other hooks stay. Methods given to ``register_fsdp_forward_method`` call the state directly, so it is put out of
    action too.
    """
    states = _states(modules)
    tables = [(m, name, getattr(m, name)) for m in modules for name in FORWARD_HOOKS]
    ours = {number for state in states for number in _hook_numbers(state)}
    try:
        for module, name, table in tables:
            others = OrderedDict((k, hook) for k, hook in table.items() if k not in ours)
            setattr(module, name, others)
        for state in states:
            state._pre_forward, state._post_forward = _unchanged_inputs, _unchanged_output
        yield
    finally:
        for state in states:
            vars(state).pop("_pre_forward", None)  # the methods of the class come back
            vars(state).pop("_post_forward", None)
        for module, name, table in tables:
            setattr(module, name, table)


def _unchanged_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def _unchanged_output(module: nn.Module, args: Any, output: Any) -> Any:
    return output


def _state(module: nn.Module) -> Any:
    found: Any = module
    return found._get_fsdp_state()


def _states(modules: Iterable[nn.Module]) -> list[Any]:
    """The states of modules; modules that were sharded in one call have one."""
    return list({id(state): state for state in map(_state, modules)}.values())


def _groups(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)
    if several is None:
        several = [state._fsdp_param_group]
    return [group for group in several if group is not None]


def _hook_numbers(state: Any) -> list[int]:
    """The numbers of the forward hooks of a state."""
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    return [h.id for handle in handles for h in getattr(handle, "handles", [handle])]
