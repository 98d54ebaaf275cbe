"""The parameters whose gradients a training step computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from curvext.per_sample.plan_cache import PlanCache, plan_cache_of
from curvext.torch_internals.modules import uncompiled

_WRAPPED = (
    "parameters: {kind} shards or copies parameters in a way that curvext.backward does not know; pass a plain module "
    "or one under DistributedDataParallel, or call losses.mean().backward()"
)


@dataclass(frozen=True)
class Trained:
    """The result of :func:`of`.

    Attributes:
        leaves: ``{name: leaf}`` that require grad, each once.
        module: their module, without wrappers; None if they were given one by one.
        replicated: the wrapper of DistributedDataParallel, if there is one.
        plans: the plan cache of this module's graphs.
    """

    leaves: dict[str, Tensor]
    module: nn.Module | None
    replicated: DistributedDataParallel | None
    plans: PlanCache


def of(parameters: Any) -> Trained:
    """The parameters that require grad of a module, a mapping or an iterable.

    Raises:
        TypeError: it is none of these, or holds something else than real dense leaves.
        ValueError: none requires grad, they lie on several devices, or the module shards them.
    """
    replicated = None
    module = parameters if isinstance(parameters, nn.Module) else None
    while module is not None and (inner := _inside(module)) is not None:
        replicated = module if isinstance(module, DistributedDataParallel) else replicated
        module = inner
    leaves: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, p in _named(parameters if module is None else module):
        if p.requires_grad and id(p) not in seen:
            _check_leaf(name, p)
            seen.add(id(p))
            leaves[name] = p
    if not leaves:
        raise ValueError("parameters: none requires grad, so there is no gradient to add to")
    devices = sorted({str(p.device) for p in leaves.values()})
    if len(devices) > 1:
        raise ValueError(f"parameters: they lie on {', '.join(devices)}; one device is needed")
    plans = PlanCache() if module is None else plan_cache_of(module)
    return Trained(leaves, module, replicated, plans)


def _inside(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper that leaves parameters as they are, or None."""
    if isinstance(module, DistributedDataParallel):
        return module.module
    inside = uncompiled(module)
    if inside is not None:
        return inside
    kind = type(module).__name__
    if kind in ("DataParallel", "FullyShardedDataParallel"):
        raise ValueError(_WRAPPED.format(kind=kind))
    return None


def _named(parameters: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(parameters, nn.Module):
        yield from parameters.named_parameters()
        return
    if isinstance(parameters, Mapping):
        items: Iterable[tuple[Any, Any]] = parameters.items()
    elif isinstance(parameters, Tensor):
        items = [("0", parameters)]
    elif isinstance(parameters, Iterable):
        items = (
            p if isinstance(p, tuple) and len(p) == 2 else (str(i), p)
            for i, p in enumerate(parameters)
        )
    else:
        raise TypeError(
            "parameters: expected a torch.nn.Module, or an iterable or mapping of parameters, got "
            f"{type(parameters).__name__}"
        )
    for name, p in items:
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters: {name!r}: expected a tensor, got {type(p).__name__}")
        yield str(name), p


def _check_leaf(name: str, p: Tensor) -> None:
    if isinstance(p, nn.parameter.UninitializedParameter):
        raise ValueError(f"parameters: {name!r} is not initialised; run the model first")
    if isinstance(p, DTensor):
        raise ValueError(_WRAPPED.format(kind=f"{name!r}, a DTensor (FSDP2, tensor parallelism),"))
    if not p.is_leaf:
        raise ValueError(
            f"parameters: {name!r} is no leaf of the graph, so it has no .grad; pass what it is computed from"
        )
    if not p.dtype.is_floating_point:
        raise TypeError(
            f"parameters: {name!r} has dtype {p.dtype}; per-sample gradients need real floating point"
        )
