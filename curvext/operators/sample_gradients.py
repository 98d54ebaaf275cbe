"""The matrix of all per-sample gradients, by products; its rows may lie on several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from curvext.finite import finite_answer
from curvext.operators.curvature import Blocks, narrowed
from curvext.per_sample.parcels import Parcel, packed, unpacked
from curvext.per_sample.recorded import Records
from curvext.per_sample.widened import in_float64
from curvext.problem import Problem
from curvext.processes import Saying, Words
from curvext.products.kept_graph import Linearisation
from curvext.space import ParameterSpace, dtype_of_sums

#: what the order of the data matters to
_ROWS = "the rows of the Gram matrix go"


class SampleGradients:
    """R, whose rows are the unnormalised gradients r_n of all samples of all ranks, by products.

    Args:
        problem: the risk.
        wide: whether products are computed in float64, whatever the parameters are in.
        order: what the order of the rows matters to.
        begun: whether the rows must come as they did before for the same.
    """

    def __init__(
        self, problem: Problem, wide: bool = False, order: str = _ROWS, begun: bool = False
    ) -> None:
        self._problem = problem
        self._wide = wide
        self._order = order
        self._begun = begun
        #: of the vectors
        self.dtype = torch.float64 if wide else problem.dtype
        #: of what is added up
        self._sums = dtype_of_sums(self.dtype)

    # ------------------------------------------------------------------ inner products

    def gram(self, call: str, vectors: Sequence[Tensor] = ()) -> Tensor:
        """R Rᵀ, ``[N, N]``.

        Args:
            call: what it is for, as ranks say it.
            vectors: what that goes by beside.
        """
        problem = self._problem
        saying = Saying(call, vectors)
        if problem.group.alone:
            gram = problem.together(saying, self._own)
        else:
            mine = problem.together(saying, self._all)
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
        if not problem.group.alone:
            mine = problem.together(Saying("gram"), self._all)
            theirs = other._problem.together(Saying("gram: other"), other._all)
            return self._across(mine, theirs)
        with_other = problem.together(Saying("gram"), lambda: self._own_with(other))
        other._problem.together(Saying("gram: other"), lambda: None)
        return with_other

    def _own(self) -> Tensor:
        """The rows of one process: batches are met in pairs, two of them in memory."""
        blocks: dict[tuple[int, int], Tensor] = {}

        def outer(left: Records | Linearisation, i: int) -> None:
            records = self._recorded(left)

            def inner(right: Records | Linearisation, j: int) -> None:
                if j >= i:
                    blocks[i, j] = records.gram(records if j == i else self._recorded(right))

            self._visit(inner)

        self._visit(outer)
        numbers = sorted({i for i, _ in blocks})
        rows = [
            torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in numbers], 1)
            for i in numbers
        ]
        return torch.cat(rows)

    def _own_with(self, other: SampleGradients) -> Tensor:
        """The same with another problem's."""
        rows: list[Tensor] = []
        kind = self._problem.space.device.type
        casts = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)

        def outer(left: Records | Linearisation, i: int) -> None:
            records = self._recorded(left)
            row: list[Tensor] = []
            # within a pass the caller's autocast is switched off
            with torch.autocast(kind, casts) if casts else nullcontext():
                other._visit(lambda right, j: row.append(records.gram(other._recorded(right))))
            rows.append(torch.cat(row, 1))

        self._visit(outer)
        return torch.cat(rows)

    def _all(self) -> list[Records]:
        """The records of this rank's shard, all at once: they travel."""
        found: list[Records] = []
        self._visit(lambda batch, _: found.append(self._recorded(batch)))
        return found

    def _across(self, mine: list[Records], travelling: list[Records]) -> Tensor:
        """Inner products of all ranks' gradients with records of each rank in turn, which go round the ring."""
        group, shares = self._problem.group, self._problem.shares
        parcel = packed(travelling)
        labels = group.objects(parcel.label)
        tensors, blocks = parcel.tensors, {group.rank: self._met(mine, travelling)}
        failure: Exception | None = None
        for step in range(1, group.size):
            came_from = (group.rank - step) % group.size
            label = labels[came_from]
            tensors = group.passed_on(tensors, label.sizes)
            if failure is None:  # who fails still passes on, and then says so
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

        def local() -> Tensor:
            parts = [self._zeros(0, b.shape[1])]

            def multiply(batch: Records | Linearisation, number: int) -> None:
                if self._wide or isinstance(batch, Records):
                    parts.append(self._recorded(batch).dot(columns))
                else:
                    parts.append(_slopes(batch, columns, problem.space))

            self._visit(multiply)
            return torch.cat(parts)

        mine = problem.together(Saying(call, vectors), local)
        return problem.group.rows(mine, problem.shares)

    def transposed_times(
        self, c: Tensor, where: str = "Rᵀ c", vectors: Sequence[Tensor] = ()
    ) -> Tensor:
        """Rᵀ c, ``[P, K]`` for c ``[N, K]``.

        Raises:
            ValueError: c has another number of rows, ``where`` says whose.
        """
        problem = self._problem

        def local() -> Tensor:
            total = self._zeros(problem.space.size, c.shape[1])
            start = problem.start

            def add(batch: Records | Linearisation, number: int) -> None:
                nonlocal start
                samples = batch.samples if isinstance(batch, Records) else len(batch.point.residual)
                weights = c[start : start + samples].T
                start += samples
                if weights.shape[1] < samples:
                    return  # the pass goes on to tell how many there are
                if self._wide or isinstance(batch, Records):
                    total.add_(self._recorded(batch).weighted_sum(weights.contiguous()).T)
                else:
                    _add_pulled_back(total, batch, weights)

            self._visit(add)
            return total

        total = problem.together(Saying(where, vectors, by_index=True), local)
        samples = problem.totals.samples
        if samples != len(c):
            raise ValueError(f"{where}: expected {samples} rows, one for each sample, got {len(c)}")
        return problem.group.sum(total)

    # ------------------------------------------------------------------ passes

    def _visit(self, visitor: Callable[[Records | Linearisation, int], None]) -> None:
        """All passes of one R go by the same rows."""
        with self._problem.watch.in_order(self._order, always=self._begun):
            self._begun = True
            self._problem.visit_records(visitor)

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
    """⟨r_n, v⟩ for each v by forward mode, ``[N, K]``: for gradients that are too large to write out."""
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
        pulled = at.vjp(weighted, last=k == len(weights) - 1)
        total[:, k] += torch.cat([p.reshape(-1) for p in pulled])


def _recorded(batch: Records | Linearisation) -> Records:
    if isinstance(batch, Records):
        return batch
    raise ValueError(
        "EmpiricalFisherOperator: some parameter has no fast path and its per-sample gradients are too "
        "large to write out (risk.explain() names it); leave it out with params=, or use smaller batches"
    )
