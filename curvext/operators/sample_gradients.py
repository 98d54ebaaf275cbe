"""The matrix of all per-sample gradients, by products; its rows may lie on several processes.

One file because products with R, Rᵀ and R Rᵀ share the order of rows and the ring of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.finite import finite_answer
from curvext.operators.curvature import Blocks, narrowed
from curvext.per_sample.parcels import Parcel, packed, unpacked
from curvext.per_sample.recorded import Records
from curvext.per_sample.widened import in_float64
from curvext.problem import Problem
from curvext.processes import Saying, Words
from curvext.products.linearisation import Linearisation
from curvext.space import ParameterSpace

#: the subject of the error about a changed order of the data
_ROWS = "the rows of the Gram matrix"


class SampleGradients:
    """Products with R, whose rows are the unnormalised gradients r_n of the samples of all ranks.

    Args:
        problem: the risk.
        wide: whether products are computed in float64, whatever the parameters' dtype.
        order: the subject of the error about a changed order.
        begun: whether the rows must keep the order of earlier calls with this subject.
    """

    def __init__(
        self, problem: Problem, wide: bool = False, order: str = _ROWS, begun: bool = False
    ) -> None:
        self._problem = problem
        self._wide = wide
        self._order = order
        self._begun = begun
        #: the dtype of vectors
        self.dtype = torch.float64 if wide else problem.dtype
        #: the dtype of sums
        self._sums = dtype_of_sums(self.dtype)

    # ------------------------------------------------------------------ inner products

    def gram(self, call: str, vectors: Sequence[Tensor] = ()) -> Tensor:
        """R Rᵀ, ``[N, N]``.

        Args:
            call: the call that needs it, which ranks compare.
            vectors: tensors that ranks compare with it.
        """
        problem = self._problem
        with problem.call(Saying(call, vectors)) as rounds:
            for _ in rounds:
                if problem.group.alone:
                    gram = self._own()
                else:
                    mine = self._all()
        if not problem.group.alone:
            gram = self._across(mine, mine)
        return finite_answer((gram + gram.T) / 2, "gram")

    def gram_with(self, other: SampleGradients) -> Tensor:
        """R R'ᵀ with the gradients of another problem, ``[N, N']``.

        Raises:
            ValueError: the two are of different process groups.
        """
        problem = self._problem
        if not problem.group.same_as(other._problem.group):
            raise ValueError(
                "gram: other: it and this operator are of different process groups, or one has process_group= and one "
                "has not"
            )
        alone = problem.group.alone
        with problem.call(Saying("gram")) as rounds:
            for _ in rounds:
                if alone:
                    with_other = self._own_with(other)
                else:
                    mine = self._all()
        with other._problem.call(Saying("gram: other")) as rounds:
            for _ in rounds:
                if not alone:
                    theirs = other._all()
        return with_other if alone else self._across(mine, theirs)

    def _own(self) -> Tensor:
        """R Rᵀ on one process, by pairs of batches, two of them in memory."""
        blocks: dict[tuple[int, int], Tensor] = {}

        count = 0
        with self._batches() as outer:
            for i, left in enumerate(outer):
                mine, count = self._recorded(left), i + 1
                with self._batches() as inner:
                    for j, right in enumerate(inner):
                        if j >= i:
                            blocks[i, j] = mine.gram(mine if j == i else self._recorded(right))
        rows = [
            torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in range(count)], 1)
            for i in range(count)
        ]
        return torch.cat(rows)

    def _own_with(self, other: SampleGradients) -> Tensor:
        """R R'ᵀ with another problem, likewise."""
        rows: list[Tensor] = []
        kind = self._problem.space.device.type
        casts = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)

        with self._batches() as outer:
            for left in outer:
                mine = self._recorded(left)
                # within a pass the caller's autocast is switched off
                with (
                    torch.autocast(kind, casts) if casts else nullcontext(),
                    other._batches() as inner,
                ):
                    row = [mine.gram(other._recorded(right)) for right in inner]
                rows.append(torch.cat(row, 1))
        return torch.cat(rows)

    def _all(self) -> list[Records]:
        """All records of this rank's shard, to be sent to the other ranks."""
        with self._batches() as batches:
            return [self._recorded(batch) for batch in batches]

    def _across(self, mine: list[Records], travelling: list[Records]) -> Tensor:
        """Inner products of all ranks' gradients with the records of each rank, which travel round a ring."""
        group, shares = self._problem.group, self._problem.ranks.shares
        parcel = packed(travelling)
        labels = group.objects(parcel.label)
        tensors, blocks = parcel.tensors, {group.rank: self._met(mine, travelling)}
        failure: Exception | None = None
        for step in range(1, group.size):
            came_from = (group.rank - step) % group.size
            label = labels[came_from]
            tensors = group.passed_on(tensors, label.sizes)
            if (
                failure is None
            ):  # a failed rank still forwards the records, and reports the error afterwards
                try:
                    parcel = Parcel(label, tensors)
                    blocks[came_from] = self._met(mine, unpacked(parcel, self._problem.space))
                except Exception as error:
                    failure = error
        if failure is not None:
            raise failure
        group.exchange(Words.of_call("the Gram matrix of all ranks"))
        return group.rows(torch.cat([blocks[rank] for rank in range(group.size)], 1), shares)

    def _met(self, mine: list[Records], theirs: list[Records]) -> Tensor:
        """⟨r_n, r'_m⟩ of this rank's samples with those of some rank."""
        rows = [torch.cat([a.gram(b) for b in theirs], 1) for a in mine if theirs]
        if rows:
            return torch.cat(rows)
        return self._zeros(sum(a.samples for a in mine), sum(b.samples for b in theirs))

    # ------------------------------------------------------------------ products with vectors

    def times(self, b: Tensor, call: str = "R b", vectors: Sequence[Tensor] = ()) -> Tensor:
        """R b, ``[N, K]`` for b ``[P, K]``; ``call`` and ``vectors`` as for :meth:`gram`."""
        problem = self._problem
        columns = [problem.space.blocks(c) for c in b.T.contiguous()]

        with problem.call(Saying(call, vectors)) as rounds:
            for _ in rounds:
                parts = [self._zeros(0, b.shape[1])]
                with self._batches() as batches:
                    for batch in batches:
                        if self._wide or isinstance(batch, Records):
                            parts.append(self._recorded(batch).dot(columns))
                        else:
                            parts.append(_slopes(batch, columns, problem.space))
        return problem.group.rows(torch.cat(parts), problem.ranks.shares)

    def transposed_times(
        self, c: Tensor, where: str = "Rᵀ c", vectors: Sequence[Tensor] = ()
    ) -> Tensor:
        """Rᵀ c, ``[P, K]`` for c ``[N, K]``.

        Raises:
            ValueError: c has another number of rows, ``where`` says whose.
        """
        problem = self._problem

        with problem.call(Saying(where, vectors, by_index=True)) as rounds:
            for _ in rounds:
                total = self._transposed(c)
        samples = problem.totals.samples
        if samples != len(c):
            raise ValueError(f"{where}: expected {samples} rows, one for each sample, got {len(c)}")
        return problem.group.sum(total)

    def _transposed(self, c: Tensor) -> Tensor:
        """This rank's part of Rᵀ c."""
        total = self._zeros(self._problem.space.size, c.shape[1])
        start = self._problem.ranks.start
        with self._batches() as batches:
            for batch in batches:
                samples = batch.samples if isinstance(batch, Records) else len(batch.point.residual)
                weights = c[start : start + samples].T
                start += samples
                if weights.shape[1] < samples:
                    continue  # go on counting the samples
                if self._wide or isinstance(batch, Records):
                    total.add_(self._recorded(batch).weighted_sum(weights.contiguous()).T)
                else:
                    _add_pulled_back(total, batch, weights)
        return total

    # ------------------------------------------------------------------ passes

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Records | Linearisation]]:
        """One pass; all passes of one R have the same order of rows."""
        with self._problem.data_check.in_order(self._order, always=self._begun):
            self._begun = True
            with self._problem.records() as batches:
                yield batches

    def _recorded(self, batch: Records | Linearisation) -> Records:
        records = _recorded(batch)
        return in_float64(records) if self._wide else records

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._sums, device=self._problem.space.device)


def narrowed_blocks(columns: list[Blocks], space: ParameterSpace) -> tuple[list[Blocks], Any]:
    """:func:`narrowed` of vectors in blocks."""
    flat = [torch.cat([b.reshape(-1) for b in v]) for v in columns]
    vectors, factors = narrowed(flat, space.dtype)
    return [space.blocks(v) for v in vectors], factors


def _slopes(at: Linearisation, columns: list[Blocks], space: ParameterSpace) -> Tensor:
    """⟨r_n, v⟩ for each v by forward mode, ``[N, K]``: for gradients that are too large to materialise."""
    residual = at.point.residual_by_sample.to(dtype_of_sums(space.dtype))
    blocks, factors = narrowed_blocks(columns, space)
    slopes = [(residual * at.jvp(v)).reshape(len(residual), -1).sum(1) for v in blocks]
    if not slopes:
        return residual.new_zeros(len(residual), 0)
    return torch.stack(slopes, 1) if factors is None else torch.stack(slopes, 1) * factors


def _add_pulled_back(total: Tensor, at: Linearisation, weights: Tensor) -> None:
    """Adds Σ_n c_kn r_n for c ``[K, N]`` to ``total`` [P, K]."""
    residual = at.point.residual_by_sample
    for k, c in enumerate(weights):
        weighted = residual * c.to(residual.dtype).view([-1] + [1] * (residual.ndim - 1))
        gradients = at.vjp(weighted, last=k == len(weights) - 1)
        total[:, k] += torch.cat([p.reshape(-1) for p in gradients])


def _recorded(batch: Records | Linearisation) -> Records:
    if isinstance(batch, Records):
        return batch
    raise ValueError(
        "EmpiricalFisherOperator: some parameter has no fast path and its per-sample gradients are too "
        "large to write out (risk.explain() names it); leave it out with params=, or use smaller batches"
    )
