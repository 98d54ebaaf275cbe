"""Models whose parameters ``fully_shard`` has sharded, as they are left by others and found again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def mesh_of(world: int) -> Any:
    """All ranks in a row."""
    return init_device_mesh("cpu", (world,))


def sharded(model: nn.Module, mesh: Any, blocks: bool = True, **options: Any) -> nn.Module:
    """The model under ``fully_shard``: its children that have parameters, and itself."""
    if blocks:
        for child in model.children():
            if next(child.parameters(), None) is not None:
                fully_shard(child, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def found(model: nn.Module) -> list[Any]:
    """All that must be as it was: parameters, where they are, gradients, flags, hooks and the settings of FSDP."""
    state: list[Any] = []
    for name, p in model.named_parameters(remove_duplicate=False):
        assert isinstance(p, DTensor), name
        local = p.to_local()
        state.append((name, id(p), p.placements, p.requires_grad, local.tolist(), p.grad is None))
    for m in model.modules():
        state += [list(m._forward_hooks.items()), list(m._forward_pre_hooks.items()), m.training]
        if hasattr(m, "_get_fsdp_state"):
            of = m._get_fsdp_state()
            names = ("_training_state", "_is_root", "_auto_reshard_after_forward")
            state.append([getattr(of, n, None) for n in names])
            state.append([n for n in vars(of) if n in ("_pre_forward", "_post_forward")])
            several = getattr(of, "_fsdp_param_groups", None)
            for group in [of._fsdp_param_group] if several is None else several:
                names = ("_sharded_state", "reshard_after_backward", "post_forward_mesh_info")
                state.append([getattr(group, n) for n in names])
    return state


def group() -> Any:
    """All ranks."""
    return dist.group.WORLD


def step(model: nn.Module, x: Any, loss: Any) -> list[torch.Tensor]:
    """One step of training: the parameters of this rank afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss(model(x)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return [p.to_local().clone() for p in model.parameters()]
