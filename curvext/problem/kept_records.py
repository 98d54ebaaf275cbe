"""The recorded per-sample gradients of batches, at the true labels or at drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor

from curvext.cache import Cache
from curvext.losses import LossPoint
from curvext.per_sample.backward_pass import BackwardPass
from curvext.per_sample.recorded import Records
from curvext.problem.slots import BatchSlot, Kept
from curvext.space import ParameterSpace

#: per-sample gradients that have to be materialised are kept up to this many elements for each batch
_MATERIALISED_LIMIT = 64 << 20


@dataclass(frozen=True)
class Draw:
    """Labels drawn from the network's own distribution, one for each datum.

    Args:
        seed: of the draws.
        start: index of this rank's first datum among those of all.
    """

    seed: int
    start: int


class KeptRecords:
    """Returns the records of a batch: the kept ones, or new ones.

    Args:
        space: the parameters θ.
        cache: where records are kept.
        backward: a batch → the batch before its backward pass, and the loss there.
    """

    def __init__(
        self,
        space: ParameterSpace,
        cache: Cache,
        backward: Callable[[BatchSlot], Kept[tuple[BackwardPass, LossPoint]]],
    ) -> None:
        self._space = space
        self._cache = cache
        self._backward = backward
        #: whether per-sample gradients turned out too large to be kept as records
        self._too_large = False

    def get(self, slot: BatchSlot, draw: Draw | None) -> Kept[Records] | None:
        """The kept records of this batch at its labels or at drawn ones, or None."""
        kept: Kept[Records] | None = self._cache.get(_place(slot, draw), slot.key)
        return kept

    def make(self, slot: BatchSlot, draw: Draw | None) -> Kept[Records] | None:
        """The records, made and kept where the budget allows; None where too much would have to be materialised."""
        if self._too_large:
            return None
        made = self._backward(slot)
        backward, point = made.item
        if backward.materialised(allow_overlap=True) > _MATERIALISED_LIMIT:
            self._too_large = True
            return None
        records = Records(backward.samples, self._space, backward.wiring())
        backward.run(records, _cotangent(point, slot, draw), allow_overlap=True)
        kept = Kept(made.totals, records)
        self._cache.put(_place(slot, draw), slot.key, kept)
        return kept


def _place(slot: BatchSlot, draw: Draw | None) -> Hashable:
    return (Records, slot.number) if draw is None else (Records, slot.number, slot.first, draw)


def _cotangent(point: LossPoint, slot: BatchSlot, draw: Draw | None) -> Tensor:
    if draw is None:
        return point.residual_by_sample
    return point.sampled(draw.seed, 0, draw.start + slot.first)
