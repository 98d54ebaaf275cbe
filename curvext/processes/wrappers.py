"""Models and loaders that are wrapped for training on several processes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from curvext.processes.group import Group


def unwrapped(model: Any, group: Group) -> Any:
    """The module inside a ``DistributedDataParallel``, or the model itself.

    The wrapper's own forward sends buffers, in evaluation mode too, and would wait for ranks that have fewer batches.

    Raises:
        ValueError: the replica is one of several and no group was given, or the wrapper is inside of the model.
    """
    if not isinstance(model, nn.Module) or not dist.is_available():
        return model
    for name, module in model.named_modules():
        if not isinstance(module, DistributedDataParallel):
            continue
        ranks = dist.get_world_size(module.process_group)
        if ranks > 1 and not group.given:
            raise ValueError(
                f"model: a DistributedDataParallel over {ranks} ranks, and process_group=None means this process and "
                "its shard of the data alone; pass process_group= for the curvature of all shards, or model.module "
                "for this one's"
            )
        if name:
            raise ValueError(
                f"model: {name!r} is a DistributedDataParallel inside of another module; pass the module with "
                f"{name!r} replaced by what it wraps, its .module"
            )
    return model.module if isinstance(model, DistributedDataParallel) else model


def check_loader(data: Any, group: Group) -> None:
    """Raises a ValueError if a loader's sampler gives some samples to two ranks, which would count twice."""
    if not group.given:
        return
    samplers = (
        getattr(data, "sampler", None),
        getattr(getattr(data, "batch_sampler", None), "sampler", None),
    )
    for sampler in samplers:
        if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
            continue
        count = len(sampler.dataset)  # type: ignore[arg-type]
        if count % sampler.num_replicas:
            raise ValueError(
                f"data: its DistributedSampler repeats samples: {count} do not divide among {sampler.num_replicas} "
                "ranks, and drop_last=False fills up with samples that other ranks have; pass a loader of "
                "Subset(data, range(rank, len(data), world)), which need not divide"
            )
