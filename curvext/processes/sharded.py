"""Parameters that ``fully_shard`` has sharded, and that are whole during a call.

For the duration of a call a plain parameter stands in the place of each DTensor, and what ``fully_shard`` does before
and after a forward pass is set aside. So a pass is local: ranks may have different numbers of batches. Kept graphs
refer to the storage of the plain parameters, which is freed after a call and filled again before the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curvext.fingerprints import fingerprints
from curvext.processes.group import Group
from curvext.processes.held import NOTHING, HeldParameters
from curvext.processes.placements import check_wrappers, misplaced
from curvext.processes.places import ShardedParameter, parameters_in, sharded_among
from curvext.processes.shards import Cut, LocalVectors, Sharded
from curvext.processes.words import Words, digest
from curvext.torch_internals.fsdp import (
    fully_shard_calls,
    fully_sharded_modules,
    is_dtensor,
    without_fsdp_hooks,
)
from curvext.torch_internals.tensors import version_of

#: bytes of parameters that one message gathers at most, unless a single parameter is larger
_MESSAGE = 1 << 28


class ShardedParameters(HeldParameters):
    """The parameters of a model under ``fully_shard``.

    Args:
        model: the module.
        modules: those within it to which ``fully_shard`` was applied.
    """

    def __init__(self, model: nn.Module, modules: list[nn.Module]) -> None:
        self._model = model
        self._modules = modules
        self._calls = fully_shard_calls(modules)
        self._table: list[ShardedParameter] = []
        self._seen: list[tuple[int, str, int]] = []
        self._depth = 0
        self._read()
        self._ranks = Group(self._mesh.get_group(self._mesh.ndim - 1))

    def check_group(self, group: Group) -> None:
        """Raises a ValueError unless the parameters are sharded among the processes of a group."""
        over = self._mesh.mesh.flatten().tolist()
        if not group.given:
            if len(over) > 1:
                raise ValueError(
                    f"model: its parameters are sharded over {len(over)} ranks (fully_shard), and process_group=None "
                    "means this process alone; pass process_group=, the group of those ranks, for the curvature of all "
                    "their data, or a whole copy of the model (torch.distributed.checkpoint.state_dict."
                    "get_model_state_dict with full_state_dict=True) for that of this process's data"
                )
            return
        members = dist.get_process_group_ranks(group.process_group)
        shards = dist.get_process_group_ranks(self._ranks.process_group)
        if sorted(members) not in (sorted(over), sorted(shards)):
            raise ValueError(
                f"process_group: the parameters of the model are sharded over the ranks {over} (fully_shard), but the "
                f"group has the ranks {members}; pass the group of the mesh that fully_shard was given"
            )

    # ------------------------------------------------------------------ whole for a call

    def whole(self, group: Group, call: str) -> AbstractContextManager[None]:
        return NOTHING if self._depth else self._whole(group, call)

    @contextmanager
    def _whole(self, group: Group, call: str) -> Iterator[None]:
        self._read()
        self._look(group, call)
        self._depth += 1
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._fill()
            with without_fsdp_hooks(self._modules, self._calls), self._in_place():
                yield
        finally:
            self._depth -= 1
            for p in self._table:
                p.leaf.untyped_storage().resize_(0)

    def _look(self, group: Group, call: str) -> None:
        """Exchanges hashes of the shards, so that every rank sees a change on any; nobody waits for one that failed."""
        locals_ = [p.sharded.to_local() for p in self._table]
        found: list[object] = [(id(p.sharded), version_of(p.sharded)) for p in self._table]
        found += [(t.data_ptr(), version_of(t)) for t in locals_]
        found += fingerprints([t.detach() for t in locals_])
        if group.alone:
            self.state = digest(found)
            return
        words = Words.of_call(f"{call}: parameters made whole", shards=digest(found))
        self.state = tuple(w.shards for w in group.exchange(words))

    def _fill(self) -> None:
        """Gathers the values of all parameters."""
        bucket: list[ShardedParameter] = []
        size = 0
        for p in self._table:
            if bucket and (size + p.leaf.nbytes > _MESSAGE or p.leaf.dtype != bucket[0].leaf.dtype):
                self._gather(bucket)
                bucket, size = [], 0
            bucket.append(p)
            size += p.leaf.nbytes
        if bucket:
            self._gather(bucket)

    def _gather(self, bucket: list[ShardedParameter]) -> None:
        """Gathers the values of some parameters of one dtype in one message."""
        ranks = self._ranks
        mine = [p.sharded.to_local().detach().reshape(-1).to(p.leaf.dtype) for p in bucket]
        shapes = [[p.part.cut.piece_shape(r) for p in bucket] for r in range(ranks.size)]
        counts = [sum(shape.numel() for shape in each) for each in shapes]
        parts = ranks.rows(torch.cat(mine), counts).split(
            [shape.numel() for each in shapes for shape in each]
        )
        for p in bucket:
            p.leaf.untyped_storage().resize_(p.leaf.nbytes)
        for number, part in enumerate(parts):
            rank, i = divmod(number, len(bucket))
            # .data: what graphs have saved of it counts as unchanged
            piece = bucket[i].part.cut.piece(bucket[i].leaf.data, rank)
            piece.copy_(part.view(piece.shape))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Plain parameters in the places of the DTensors."""
        placed: list[tuple[nn.Module, str, Any]] = []
        try:
            for p in self._table:
                if p.leaf.requires_grad is not p.sharded.requires_grad:
                    p.leaf.requires_grad_(p.sharded.requires_grad)
                for module, name in p.places:
                    placed.append((module, name, p.sharded))
                    # recurrent layers keep a list of their weights by a __setattr__ of their own
                    setattr(module, name, p.leaf)
            yield
        finally:
            for module, name, sharded in placed:
                setattr(module, name, sharded)

    # ------------------------------------------------------------------ where they are

    def _read(self) -> None:
        """Takes the DTensors as they stand now; nothing is sent."""
        for m in self._modules:
            m.reshard()  # type: ignore[operator]  # after a forward pass of the user's, parameters may still be whole
        standing = parameters_in(self._model)
        seen = [(id(module), name, id(p)) for _, module, name, p in standing]
        if seen == self._seen:
            return
        before = {place: p.leaf for p in self._table for place in p.places}
        table = sharded_among(standing, self._calls, before)
        if self._table and table[0].part.mesh != self._mesh:
            raise ValueError(
                "model: its parameters lie on another mesh than when the risk was made; make a new risk"
            )
        self._table, self._seen = table, seen
        self.stand_ins = {id(p.leaf) for p in table}

    @property
    def _mesh(self) -> Any:
        return self._table[0].part.mesh

    def here(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        self._read()
        of = {id(p.leaf): p for p in self._table}
        found = []
        for leaf, block in pairs:
            p = of.get(id(leaf))  # none where it was left out of fully_shard
            if p is not None:
                leaf, block = p.sharded.to_local(), p.part.cut.piece(block, self._ranks.rank)
            found.append((leaf, block))
        return found

    def vectors(self, parameters: Mapping[str, Tensor]) -> LocalVectors:
        parts = {id(p.leaf): p.part for p in self._table}
        found = {}
        for name, p in parameters.items():
            plain = Sharded(p.shape, Cut(p.shape or torch.Size((1,)), 0, self._ranks.size))
            found[name] = parts.get(id(p), plain)
        return LocalVectors(found, self._ranks)

    def described(self) -> str:
        return (
            f"parameters are sharded over {self._ranks.size} ranks (fully_shard), and whole on each rank for the "
            "duration of a call"
        )

    def nbytes(self) -> int:
        return 0 if self._ranks.alone else sum(p.leaf.nbytes for p in self._table)


#: by the id of the model, which lives as long as they do: risks of one model share the plain parameters
_OF_MODELS: weakref.WeakValueDictionary[int, ShardedParameters] = weakref.WeakValueDictionary()


def held_parameters(model: Any, group: Group) -> HeldParameters:
    """Where the parameters of a model are.

    Raises:
        ValueError: they are sharded in a way for which there is no rule, or over others than the group's processes.
    """
    if not isinstance(model, nn.Module) or not dist.is_available():
        return HeldParameters()
    modules = fully_sharded_modules(model)
    check_wrappers(model)
    if not modules:
        for name, p in model.named_parameters():
            if is_dtensor(p):
                raise misplaced(name, p)
        return HeldParameters()
    held = _OF_MODELS.get(id(model))
    if held is None:
        held = _OF_MODELS[id(model)] = ShardedParameters(model, modules)
    held.check_group(group)
    return held
