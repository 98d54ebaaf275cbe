"""One pass over the batches of this process, each inside the isolated model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import torch

from curvext.data import mapped, tensors
from curvext.evaluation.evaluation import Evaluation
from curvext.fingerprints import strided_parts
from curvext.problem.consistency import PassRecord
from curvext.problem.slots import BatchSlot, Kept
from curvext.problem.totals import BatchTotals

Item = TypeVar("Item")


def one_pass(
    batches: Iterable[Any],
    evaluation: Evaluation,
    record: PassRecord,
    item_of: Callable[[BatchSlot], Kept[Item]],
    found: list[BatchTotals],
) -> Generator[Item, None, None]:
    """The item of each batch that has samples.

    Args:
        batches: the data.
        evaluation: the model, which is restored afterwards, also when the consumer of an item raises.
        record: notes the samples and their order.
        item_of: a batch → its item, kept or new.
        found: receives what each batch adds to the totals.
    """
    first = 0
    for number, batch in enumerate(batches):
        inside = strided_parts(tensors(batch))
        if evaluation.is_empty(batch, inside):
            continue
        # tensors of inference mode cannot be saved for a backward pass
        if any([t.is_inference() for t in inside]):
            with torch.inference_mode(False):
                batch = mapped(batch, torch.clone)
            inside = strided_parts(tensors(batch))
        key = record.key_of(inside)
        with evaluation.isolated():
            kept = item_of(BatchSlot(number, first, batch, key))
            found.append(kept.totals)
            first += kept.totals.samples
            yield kept.item
