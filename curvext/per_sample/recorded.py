"""The per-sample gradients of a batch, recorded as uses, so that products with them do not run the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.gradients.structured import StructuredGradient
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.collected_uses import Consumer, tied
from curvext.per_sample.partners import Wiring
from curvext.per_sample.reductions import BlockSum
from curvext.space import ParameterSpace


class Records:
    """Consumer of a backward pass: all uses of one batch, and the gradients that had to be materialised.

    With R the N×P matrix whose rows are the per-sample gradients r_n (unnormalised, never formed),
    this gives R v, Rᵀ c and R R'ᵀ, in at least float32.

    Args:
        samples: N.
        space: the parameters θ.
        wiring: of the graph that is recorded, for :meth:`replay`.
    """

    def __init__(self, samples: int, space: ParameterSpace, wiring: Wiring | None = None) -> None:
        self.samples = samples
        self.wiring = wiring
        self._space = space
        self._dtype = dtype_of_sums(space.dtype)
        self._parameters = list(space.parameters.values())
        self._uses: list[tuple[int, ViewChain, StructuredGradient]] = []
        self._rows: dict[int, Tensor] = {}

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Records a use."""
        self._uses.append((parameter, arrange, use))

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Records one sample's materialised gradient with respect to one parameter."""
        if parameter not in self._rows:
            self._rows[parameter] = gradient.new_zeros(self.samples, gradient.numel())
        self._rows[parameter][sample] = gradient.detach().reshape(-1)

    def replay(self, consumer: Consumer) -> None:
        """Hands the gradients to ``consumer`` like a pass in which uses do not overlap."""
        wiring = self.wiring
        assert wiring is not None
        for parameter in dict.fromkeys(p for p, _, _ in self._uses):
            uses = [(use, arrange) for arrange, use in self._uses_of(parameter)]
            if parameter in wiring.overlapping:
                for n in range(self.samples):
                    total = self._zeros(*self._parameters[parameter].shape)
                    for use, arrange in uses:
                        here = arrange(total)
                        here += use.sample(n).reshape(here.shape)
                    consumer.gradient(parameter, n, total)
                continue
            if parameter in wiring.tied and len(uses) == 2:
                uses = [tied(uses[0], uses[1], self.samples)]
            for use, arrange in uses:
                consumer.use(parameter, use, arrange)
        for parameter, rows in self._rows.items():
            for n, row in enumerate(rows):
                consumer.gradient(parameter, n, row.view(self._parameters[parameter].shape))

    def dot(self, columns: Sequence[Sequence[Tensor]]) -> Tensor:
        """R v for K vectors in blocks, one tensor per parameter: ``[N, K]``."""
        total = self._zeros(self.samples, len(columns))
        if not columns:
            return total
        for parameter, arrange, use in self._uses:
            blocks = [arrange(v[parameter]) for v in columns]
            # one vector needs no copy
            total += use.dot(blocks[0][None] if len(blocks) == 1 else torch.stack(blocks))
        for parameter, rows in self._rows.items():
            vectors = torch.stack([v[parameter].reshape(-1) for v in columns])
            total += rows.to(total.dtype) @ vectors.to(total.dtype).T
        return total

    def weighted_sum(self, c: Tensor) -> Tensor:
        """Rᵀ c for c ``[K, N]``: flat vectors as rows ``[K, P]``."""
        c = c.to(self._dtype)
        rows = torch.empty(len(c), self._space.size, dtype=c.dtype, device=c.device)
        if len(c) == 0:
            return rows
        totals = [BlockSum(self._space, row) for row in rows]
        for parameter, arrange, use in self._uses:
            for total, part in zip(totals, use.weighted_sum(c), strict=True):
                total.add(parameter, part, arrange)
        for parameter, written in self._rows.items():
            for total, part in zip(totals, c @ written.to(c.dtype), strict=True):
                total.add(parameter, part)
        for total in totals:
            total.blocks()
        return rows

    def gradients(self, start: int, stop: int) -> Tensor:
        """The rows r_n of some samples, materialised, ``[n, P]``."""
        rows = self._zeros(stop - start, self._space.size)
        for row, n in zip(rows, range(start, stop), strict=True):
            blocks = self._space.blocks(row)
            for parameter, arrange, use in self._uses:
                here = arrange(blocks[parameter])
                here += use.sample(n).reshape(here.shape)
            for parameter, written in self._rows.items():
                blocks[parameter] += written[n].view_as(blocks[parameter])
        return rows

    def gram(self, other: Records) -> Tensor:
        """R R'ᵀ with the records of another batch: ⟨r_n, r'_m⟩, ``[N, N']``."""
        total = self._zeros(self.samples, other.samples)
        for parameter in range(len(self._parameters)):
            mine, theirs = self._uses_of(parameter), other._uses_of(parameter)
            written = parameter in self._rows or parameter in other._rows
            shape = self._parameters[parameter].shape
            if _alone(mine, theirs, shape) and not written:
                total += mine[0][1].gram(theirs[0][1])
            elif mine or parameter in self._rows:
                total += self._written_out(parameter) @ other._written_out(parameter).T
        return total

    def _written_out(self, parameter: int) -> Tensor:
        """The per-sample gradients by one parameter, ``[N, numel]``: for uses that overlap."""
        shape = self._parameters[parameter].shape
        rows = self._zeros(self.samples, *shape)
        for arrange, use in self._uses_of(parameter):
            for row, part in zip(rows, use.rows(), strict=True):
                here = arrange(row)
                here += part.reshape(here.shape)
        if parameter in self._rows:
            rows += self._rows[parameter].view_as(rows)
        return rows.reshape(self.samples, -1)  # a parameter may be a scalar

    def _uses_of(self, parameter: int) -> list[tuple[ViewChain, StructuredGradient]]:
        return [(arrange, use) for p, arrange, use in self._uses if p == parameter]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._space.device)

    def nbytes(self) -> int:
        """Bytes that the records hold."""
        tensors = [*self._rows.values(), *(t for _, _, use in self._uses for t in use.kept())]
        return sum(t.numel() * t.element_size() for t in tensors)


def _alone(
    mine: list[tuple[ViewChain, StructuredGradient]],
    theirs: list[tuple[ViewChain, StructuredGradient]],
    shape: torch.Size,
) -> bool:
    """Whether each side has one use, of the same elements of the parameter in the same order."""
    if len(mine) != 1 or len(theirs) != 1:
        return False
    seen = [uses[0][0](torch.empty(shape, device="meta")) for uses in (mine, theirs)]
    places = [(view.shape, view.stride(), view.storage_offset()) for view in seen]
    return places[0] == places[1]
