"""What the processes of a group exchange about one risk, and where each one's samples begin."""

from __future__ import annotations

from typing import Any

import torch

from curvext.evaluation.evaluation import Evaluation
from curvext.fingerprints import portable_fingerprint
from curvext.losses import OutputLoss
from curvext.problem.freshness import Loss, tensors_of_loss
from curvext.problem.totals import Totals
from curvext.processes import Group, Saying, Words
from curvext.processes.words import digest
from curvext.space import ParameterSpace


class Ranks:
    """The exchange of one risk: each rank's totals, and whether model, loss and call are the same on all.

    Args:
        group: the processes; one alone exchanges nothing.
        evaluation: the model.
        space: the parameters θ.
        loss: the user's.
    """

    def __init__(
        self, group: Group, evaluation: Evaluation, space: ParameterSpace, loss: Loss
    ) -> None:
        self.group = group
        self._evaluation = evaluation
        self._space = space
        self._loss = loss
        self._reduction = ""
        self._digests: dict[str, int] | None = None
        #: number of samples on each rank, at the last exchange
        self.shares: tuple[int, ...] = (0,)
        #: the index of this rank's first sample among those of all
        self.start = 0
        #: the sum over the ranks of the number that the last call counted
        self.counted = 0.0

    def renew(self, loss: OutputLoss | None = None) -> None:
        """Recomputes the digests of model and loss at the next exchange; ``loss`` is the current one."""
        self._digests = None
        if loss is not None:
            self._reduction = loss.reduction

    def introduce(self, likely_samples: int | None) -> None:
        """The first exchange: checks that model, loss and selection agree and that some rank has a batch."""
        self._evaluation.refresh_members()
        heard = self.group.exchange(
            Words.of_call(
                "making a risk or operator",
                digests=self._said(),
                samples=likely_samples or 0,
                count=float(likely_samples != 0),
            )
        )
        if not any(w.count for w in heard):
            raise ValueError("data: empty on every rank; at least one sample is needed")
        self._locate([w.samples for w in heard])

    def exchange(self, saying: Saying, here: Totals) -> tuple[Totals, bool]:
        """The totals of all ranks, and whether each of them knew where its samples begin.

        Raises:
            RuntimeError: another rank raised.
            ValueError: the ranks do not make the same call, or no rank has a sample.
        """
        count = 0.0 if saying.count is None else saying.count()
        if self.group.alone:
            self.shares, self.counted = (here.samples,), count
            if here.samples == 0:
                raise ValueError(_NO_SAMPLE)
            return here, True
        heard = self.group.exchange(
            Words.of_call(
                saying.call,
                saying.vectors,
                digests=self._said(),
                start=self.start,
                count=count,
                samples=here.samples,
                divisor=here.divisor,
                value=here.value,
            )
        )
        self.counted = sum(w.count for w in heard)
        known = self._locate([w.samples for w in heard]) == [w.start for w in heard]
        totals = Totals(
            sum(w.samples for w in heard),
            sum(w.divisor for w in heard),
            sum(w.value for w in heard),
        )
        if totals.samples == 0:
            raise ValueError(_NO_SAMPLE)
        return totals, known

    def all_have(self, saying: Saying, here: bool) -> bool:
        """Whether all ranks have something kept, after checking that they make the same call on the same model.

        Raises:
            RuntimeError: another rank raised.
            ValueError: the ranks do not make the same call, or not on the same model.
        """
        if self.group.alone:
            return here
        words = Words.of_call(saying.call, saying.vectors, digests=self._said(), count=float(here))
        return all(heard.count for heard in self.group.exchange(words))

    def identity(self) -> dict[str, int]:
        """Hashes of model and loss as they are now, by topic in words."""
        self._digests = None
        self._evaluation.refresh_members()
        said = self._said()
        return {text: said[topic] for topic, text in _TOPICS.items()}

    def _locate(self, shares: list[int]) -> list[int]:
        """Stores each rank's number of samples; returns the index of each rank's first sample."""
        starts = [sum(shares[:rank]) for rank in range(len(shares))]
        self.shares, self.start = tuple(shares), starts[self.group.rank]
        return starts

    def _said(self) -> dict[str, int]:
        """Digests of what must be the same on all ranks, by topic; recomputed only after a change."""
        if self._digests is None:
            members, space = self._evaluation.members, self._space
            kind = space.device.type
            self._digests = {
                "params": digest((space.names, list(map(tuple, space.shapes.values())))),
                "parameters": portable_fingerprint(members.parameters),
                "buffers": portable_fingerprint(members.buffers),
                "modes": digest([m.training for m in members.modules]),
                "loss": digest(
                    (
                        digest(_description(self._loss, self._reduction)),
                        portable_fingerprint(tensors_of_loss(self._loss)),
                    )
                ),
                "settings": digest(
                    torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
                ),
            }
        return self._digests


_TOPICS = {
    "params": "the selection of params",
    "parameters": "the contents of the model's parameters",
    "buffers": "the contents of the model's buffers",
    "modes": "the mode (train or eval) of the model's modules",
    "loss": "the loss",
    "settings": "autocast",
}

_NO_SAMPLE = "data: no batch of any rank has a sample; at least one is needed"


def _description(loss: Loss, reduction: str) -> list[Any]:
    """The class of a loss and its numbers, as text that is the same in every process."""
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    plain = (bool, int, float, str, type(None))
    numbers = {
        k: v
        for k, v in getattr(loss, "__dict__", {}).items()
        if isinstance(v, plain) and k != "training"
    }
    return [kind.__module__, kind.__qualname__, reduction, sorted(numbers.items())]
