"""The sharded parameters of a model, where they stand, and the plain parameters that take their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from curvext.dtypes import dtype_of_sums
from curvext.processes.placements import misplaced, part_of
from curvext.processes.shards import Sharded
from curvext.torch_internals.fsdp import FullyShardCall, is_dtensor
from curvext.torch_internals.modules import parameters_of

#: a module, and the name of a parameter within it
Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class ShardedParameter:
    """A parameter that is sharded.

    Args:
        sharded: the DTensor.
        leaf: the plain parameter that takes its place during a call; its memory is freed in between.
        part: how it is cut.
        places: where it stands, several where it is tied.
    """

    sharded: Any
    leaf: nn.Parameter
    part: Sharded
    places: list[Place]


def parameters_in(model: nn.Module) -> list[tuple[str, nn.Module, str, Any]]:
    """The parameters of a model in each of their places: name of the module, module, name there, parameter."""
    return [
        (prefix, module, name, p)
        for prefix, module in model.named_modules()
        for name, p in parameters_of(module).items()
        if p is not None
    ]


def sharded_among(
    standing: Sequence[tuple[str, nn.Module, str, Any]],
    calls: Sequence[FullyShardCall],
    before: Mapping[Place, nn.Parameter],
) -> list[ShardedParameter]:
    """The sharded parameters among those of a model.

    Args:
        standing: see :func:`parameters_in`.
        calls: those of ``fully_shard``, which learn where their parameters stand.
        before: plain parameters made earlier, which are taken again where they fit.

    Raises:
        ValueError: there is none, or one lies in a way for which there is no rule.
    """
    managed = {id(p): origin for call in calls for p, origin in call.parameters()}
    origins: dict[object, str] = {}
    table: dict[int, ShardedParameter] = {}
    for prefix, module, name, p in standing:
        if not is_dtensor(p):
            continue
        full = f"{prefix}.{name}".removeprefix(".")
        if id(p) not in managed:
            raise misplaced(full, p)
        if id(p) not in table:
            if origins.setdefault(managed[id(p)], full) != full:
                raise ValueError(
                    f"model: {full!r} is tied to a parameter that another call of fully_shard took, as "
                    f"{origins[managed[id(p)]]!r}, so that they are two now; shard both modules in one call, "
                    "fully_shard([one, other])"
                )
            leaf = _leaf_of(p, before.get((module, name)))
            table[id(p)] = ShardedParameter(p, leaf, part_of(full, p), [])
        table[id(p)].places.append((module, name))
    if managed.keys() != table.keys():
        raise ValueError(
            "model: fully_shard was applied, but not all of its sharded parameters are in their places; after an error "
            "in a forward pass call reset_iter_state() of the outermost FSDP module"
        )
    for call in calls:
        mine = [table[id(p)] for p, _ in call.parameters()]
        call.places = [(module, name, p.leaf) for p in mine for module, name in p.places]
        _check_casts(call)
    meshes = list(dict.fromkeys(p.part.mesh for p in table.values()))
    if len(meshes) > 1:
        raise ValueError(
            f"model: its parameters are sharded over several meshes, {meshes[0]} and {meshes[1]}; there is a rule "
            "for one: pass all of fully_shard's calls the same mesh"
        )
    return list(table.values())


def _leaf_of(sharded: Any, before: nn.Parameter | None) -> nn.Parameter:
    """The plain parameter that takes the place of a DTensor, without memory yet; the one before if it fits."""
    with torch.inference_mode(False), torch.no_grad():
        local = sharded.to_local()
        if before is not None and (before.shape, before.dtype, before.device) == (
            sharded.shape,
            sharded.dtype,
            local.device,
        ):
            return before
        data = torch.empty(sharded.shape, dtype=local.dtype, device=local.device)
        data.untyped_storage().resize_(0)
        return nn.Parameter(data, sharded.requires_grad)


def _check_casts(call: FullyShardCall) -> None:
    """Raises a ValueError for a MixedPrecisionPolicy under which sums of products would have another dtype.

    Or where a layer has its weights in a list of its own, in which they would not be cast.
    """
    for what, wanted in (("param_dtype", call.param_dtype), ("output_dtype", call.output_dtype)):
        for module, name, p in call.places:
            if wanted is None or wanted == p.dtype:
                continue
            if dtype_of_sums(wanted) != p.dtype:
                raise ValueError(
                    f"model: a MixedPrecisionPolicy with {what}={wanted} for parameters in {p.dtype}; there is a rule "
                    "for bfloat16 and float16 beside float32 parameters: apply fully_shard with such a policy, or none"
                )
            if isinstance(module, nn.RNNBase):
                raise ValueError(
                    f"model: a MixedPrecisionPolicy with {what}={wanted} on {name!r} of {type(module).__name__}, for "
                    "which there is no rule; apply fully_shard to that layer without mp_policy"
                )
