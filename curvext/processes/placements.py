"""In which ways parameters may be sharded: as ``fully_shard`` cuts them, on the device that computes with them."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from curvext.processes.shards import Cut, Sharded
from curvext.torch_internals.fsdp import placement_kinds


def part_of(name: str, p: Any) -> Sharded:
    """How ``fully_shard`` cut a parameter.

    Raises:
        ValueError: it is cut along another dimension of a mesh too, or lies on another device than is computed on.
    """
    kinds = placement_kinds(p)
    if [kind for kind, _ in kinds] not in (["Shard"], ["Replicate", "Shard"]):
        raise misplaced(name, p)
    local = p.to_local()
    if local.device.type != p.device_mesh.device_type:
        raise ValueError(
            f"model: {name!r} is kept on {local.device} while its mesh computes on {p.device_mesh.device_type} (a "
            "CPUOffloadPolicy); there is no rule for that: apply fully_shard without offload_policy"
        )
    dim = kinds[-1][1]
    group = p.device_mesh.get_group(p.device_mesh.ndim - 1)
    cut = Cut(p.shape, dim, dist.get_world_size(group))
    if local.shape != cut.piece_shape(dist.get_rank(group)):
        raise misplaced(name, p)
    return Sharded(p.shape, cut, p.device_mesh, p.placements)


def check_wrappers(model: nn.Module) -> None:
    """Raises a ValueError for the older FSDP, whose forward pass sends parameters, which it keeps in flat tensors."""
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            where = f"its module {name!r} is" if name else "it is"
            raise ValueError(
                f"model: {where} a FullyShardedDataParallel, for which there is no rule; shard the model with "
                "torch.distributed.fsdp.fully_shard, the newer FSDP"
            )


def misplaced(name: str, p: Any) -> ValueError:
    """The error of a parameter that lies in a way for which there is no rule."""
    return ValueError(
        f"model: {name!r} is sharded over processes as {p.placements} on {p.device_mesh}, for which there is no rule "
        "(tensor, pipeline or expert parallelism, say): process_group= takes replicas of the whole model, or "
        "parameters that torch.distributed.fsdp.fully_shard cut into Shard along the mesh of process_group"
    )
