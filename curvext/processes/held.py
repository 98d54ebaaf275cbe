"""Where the parameters of a model are: as a rule whole on each rank."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from curvext.processes.group import Group
from curvext.processes.shards import LocalVectors

NOTHING = nullcontext()


class HeldParameters:
    """Parameters that are whole on each rank all the time."""

    #: what the ranks' shards were when they were last looked at; equal if none has changed
    state: object = None
    #: the ids of tensors that stand for shards, whose changes are seen in ``state``
    stand_ins: Set[int] = frozenset()

    def whole(self, group: Group, call: str) -> AbstractContextManager[None]:
        """A context in which the model's parameters are plain tensors with their values; within another, nothing.

        Args:
            group: the ranks that enter together.
            call: which call they are in, as they compare it.
        """
        return NOTHING

    def here(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """What this process has between calls of parameters and of tensors of their shapes."""
        return pairs

    def vectors(self, parameters: Mapping[str, Tensor]) -> LocalVectors | None:
        """How vectors on some parameters are cut among the ranks, or None."""
        return None

    def described(self) -> str:
        """Where they are, in words."""
        return "parameters are whole on each rank"

    def nbytes(self) -> int:
        """Bytes that are gathered before each call."""
        return 0
