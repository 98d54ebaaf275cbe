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
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvext.torch_internals.hooks import FORWARD_HOOKS
from curvext.torch_internals.tensors import map_leaves


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


class FullyShardCall:
    """What one call of ``fully_shard`` set up: parameters, a MixedPrecisionPolicy, and hooks around forward passes.

    The hooks gather and free parameters, and reduce gradients in a backward pass. In their place :meth:`before` and
    :meth:`after` do what the policy says, as operations of the graph: parameters are cast to ``param_dtype``, and
    inputs too unless ``cast_forward_inputs=False``; outputs to ``output_dtype``. So derivatives are by the parameters
    in their own dtype.

    Args:
        state: FSDP's.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        policy = state._mp_policy
        self.param_dtype: torch.dtype | None = policy.param_dtype
        self.output_dtype: torch.dtype | None = policy.output_dtype
        self._casts_inputs: bool = policy.cast_forward_inputs
        #: modules, names, and the plain parameters that stand there during a call
        self.places: list[tuple[nn.Module, str, Tensor]] = []

    def parameters(self) -> list[tuple[Tensor, object]]:
        """The sharded parameters, whether they are in their places now or not.

        Each with a token that is equal for those that were one tied parameter before, where this version of PyTorch
        notes that: ``_orig_param_uid``.
        """
        several = getattr(self.state, "_fsdp_param_groups", None)
        if several is None:
            several = [self.state._fsdp_param_group]
        return [
            (p.sharded_param, getattr(p, "_orig_param_uid", id(p)))
            for group in several
            if group is not None
            for p in group.fsdp_params
        ]

    def hook_numbers(self) -> list[int]:
        """The numbers of FSDP's forward hooks."""
        handles = [self.state._pre_forward_hook_handle, self.state._post_forward_hook_handle]
        return [h.id for handle in handles for h in getattr(handle, "handles", [handle])]

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """In the place of FSDP's hook before a forward pass."""
        if self.param_dtype is None:
            return args, kwargs
        for owner, name, p in self.places:
            # no parameter, so that only the table takes it; afterwards the parameter stands there again
            table: dict[str, Any] = owner._parameters
            table[name] = p.to(self.param_dtype)
        return _cast((args, kwargs), self.param_dtype) if self._casts_inputs else (args, kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """In the place of FSDP's hook after a forward pass."""
        if self.param_dtype is not None:
            for owner, name, p in self.places:
                table: dict[str, Any] = owner._parameters
                table[name] = p
        return output if self.output_dtype is None else _cast(output, self.output_dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def change(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return map_leaves(change, values)


def fully_shard_calls(modules: Iterable[nn.Module]) -> list[FullyShardCall]:
    """The calls of ``fully_shard`` that sharded some modules; one call may have sharded several."""
    states = [cast(Any, module)._get_fsdp_state() for module in modules]
    return [FullyShardCall(state) for state in {id(s): s for s in states}.values()]


@contextmanager
def without_fsdp_hooks(
    modules: Sequence[nn.Module], calls: Sequence[FullyShardCall]
) -> Iterator[None]:
    """Forward passes in which each call's ``before`` and ``after`` stand for FSDP's hooks; other hooks stay.

    Methods given to ``register_fsdp_forward_method`` call the state directly, so its methods are exchanged too.
    """
    tables = [(m, name, getattr(m, name)) for m in modules for name in FORWARD_HOOKS]
    ours = {number: call for call in calls for number in call.hook_numbers()}

    def instead(name: str, number: int, hook: Any) -> Any:
        call = ours.get(number)
        if call is None:
            return hook
        return call.before if "pre" in name else call.after

    try:
        for module, name, table in tables:
            setattr(
                module, name, OrderedDict((k, instead(name, k, hook)) for k, hook in table.items())
            )
        for call in calls:
            call.state._pre_forward, call.state._post_forward = call.before, call.after
        yield
    finally:
        for call in calls:
            vars(call.state).pop("_pre_forward", None)  # the methods of the class come back
            vars(call.state).pop("_post_forward", None)
        for module, name, table in tables:
            setattr(module, name, table)
