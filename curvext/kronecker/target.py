"""The matrix M whose blocks are approximated: its vectors g, and the scale that they carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from curvext.arguments import as_choice, as_integer
from curvext.gradients.structured import StructuredGradient
from curvext.losses import LossPoint
from curvext.operations.view_chain import ViewChain
from curvext.operators.fisher import LABELS
from curvext.per_sample.backward_pass import BackwardPass
from curvext.per_sample.partners import Wiring
from curvext.per_sample.recorded import Records
from curvext.problem import Pass, Problem
from curvext.processes import Saying

#: of which matrices there are Kronecker factors
FISHERS = ("exact", "mc", "empirical")


class ColumnVisitor(Protocol):
    """A consumer of a backward pass that also receives the beginning and end of each batch and vector."""

    def meet(self, wiring: Wiring) -> None:
        """Begins a batch; ``wiring`` says how its graph uses the parameters."""

    def begin(self, samples: int, sign: float, last: bool) -> None:
        """Begins a vector of a batch, which adds or, for sign −1, subtracts; ``last`` marks the batch's last."""

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """See :class:`curvext.per_sample.collected_uses.Consumer`."""

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Likewise."""

    def end(self) -> None:
        """Ends the vector."""


@dataclass(frozen=True)
class Target:
    """M = c Σ_nv ± G_nv G_nvᵀ.

    Attributes:
        kind: "exact" (F, which is G), "mc", "empirical", or "ggn".
        samples, seed: of the drawn labels of "mc", which are those of :class:`curvext.MCFisherOperator`.
    """

    kind: str
    samples: int
    seed: int

    @classmethod
    def checked(
        cls,
        owner: str,
        problem: Problem,
        kind: str,
        samples: int,
        seed: int,
        kinds: tuple[str, ...],
    ) -> Target:
        """The target by its arguments.

        Raises:
            ValueError: one does not fit, or the loss has no likelihood.
        """
        kind = as_choice(f"{owner}: kind", kind, kinds)
        samples = as_integer(f"{owner}: samples", samples, 1)
        seed = as_integer(f"{owner}: seed", seed)
        if kind in ("exact", "mc") and problem.loss.no_likelihood is not None:
            raise ValueError(
                f"{owner}: kind={kind!r}: {problem.loss.no_likelihood}, so there is no Fisher matrix; use "
                "kind='empirical', or BlockDiagonalOperator with kind='ggn'"
            )
        if kind != "mc":
            samples = seed = 0  # which do not matter, so that equal operators share what is kept
        return cls(kind, samples, seed)

    @property
    def semidefinite(self) -> bool:
        """Whether M is PSD whatever the loss."""
        return self.kind in FISHERS

    def scale(self, problem: Problem) -> float:
        """c, once a pass has seen all data."""
        if self.kind == "empirical":
            return problem.outer_scale()
        return problem.mean_scale() / max(1, self.samples)

    def saying(self, what: str) -> Saying:
        """The description of a pass, which ranks compare."""
        return Saying(f"{what} of {self}", by_index=self.kind == "mc")

    def visit(self, problem: Problem, consumer: ColumnVisitor, record: bool = False) -> None:
        """One pass over the data: plays every vector of every batch to the consumer.

        A batch whose gradients are recorded needs no pass through the network. ``record``: whether they are to be,
        where there is one vector for each datum and the cache keeps anything.
        """
        check = problem.data_check
        order = check.in_order(LABELS, always=True) if self.kind == "mc" else nullcontext()
        with order, self._batches(problem, record) as batches:
            for batch in batches:
                if isinstance(batch, Records):
                    assert batch.wiring is not None
                    consumer.meet(batch.wiring)
                    consumer.begin(batch.samples, 1.0, True)
                    batch.replay(consumer)
                    consumer.end()
                else:
                    backward, point = batch
                    consumer.meet(backward.wiring())
                    self._play(backward, point, consumer, problem.ranks.start)

    def _batches(
        self, problem: Problem, record: bool
    ) -> Pass[Records | tuple[BackwardPass, LossPoint]]:
        if self.kind == "empirical":
            return problem.recorded(None, record)
        if self.kind == "mc" and self.samples == 1:
            return problem.recorded(self.seed, record)
        return problem.backward_passes()

    def _play(
        self, backward: BackwardPass, point: LossPoint, consumer: ColumnVisitor, start: int
    ) -> None:
        left = self._columns(point, start + backward.first)
        column = next(left, None)
        while column is not None:
            following = next(left, None)
            cotangent, sign = column
            consumer.begin(backward.samples, sign, following is None)
            backward.run(consumer, cotangent, keep=following is not None)
            consumer.end()
            column = following

    def _columns(self, point: LossPoint, first: int) -> Iterator[tuple[Tensor, float]]:
        if self.kind == "empirical":
            yield point.residual_by_sample, 1.0
        elif self.kind == "mc":
            for draw in range(self.samples):
                yield point.sampled(self.seed, draw, first), 1.0
        elif self.kind == "exact":
            yield from point.fisher_root_columns()
        else:
            yield from point.root_columns()
