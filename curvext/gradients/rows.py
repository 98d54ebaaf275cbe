"""The gradients of a look-up table: rows by their indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.dtypes import alike, wide
from curvext.gradients.structured import StructuredGradient


class RowsGradient(StructuredGradient):
    """The gradient of a look-up table: G_n adds g_ns to row index_ns.

    Args:
        index: ``[N, S]`` int64.
        g: ``[N, S, F]``.
        shape: D = (rows, F).
        present: ``[N, S]``, false for padding, whose g is zero; None if there is none.
    """

    def __init__(
        self, index: Tensor, g: Tensor, shape: torch.Size, present: Tensor | None = None
    ) -> None:
        self.index = index
        self.g = g
        self.shape = shape
        self.present = present

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, row and gradient of each distinct (sample, row): [U], [U], [U, F]."""
        samples = torch.arange(self.index.shape[0], device=self.index.device).unsqueeze(1)
        key = samples * self.shape[0] + self.index
        distinct, place = torch.unique(key, return_inverse=True)
        g = wide(self.g)
        merged = g.new_zeros(distinct.numel(), g.shape[-1])
        add_rows(merged, place.flatten(), g.flatten(0, 1))
        return distinct // self.shape[0], distinct % self.shape[0], merged

    def square(self) -> Tensor:
        _, rows, merged = self._merged()
        return add_rows(merged.new_zeros(self.shape), rows, merged.square_())

    def sample(self, n: int) -> Tensor:
        g = wide(self.g[n])
        return add_rows(g.new_zeros(self.shape), self.index[n], g)

    def norm(self) -> Tensor:
        samples, _, merged = self._merged()
        norms = merged.new_zeros(self.index.shape[0])
        return add_rows(norms, samples, merged.square_().sum(1))

    def dot(self, W: Tensor) -> Tensor:
        # one k at a time: the looked-up rows are as large as g
        g, W = alike(self.g, W)
        return torch.stack([(F.embedding(self.index, w) * g).sum((1, 2)) for w in W], 1)

    def weighted_sum(self, c: Tensor) -> Tensor:
        g, c = alike(self.g, c)
        total = g.new_zeros(c.shape[0], *self.shape)
        for k, weights in enumerate(c):
            weighted = g * weights.view(-1, 1, 1)
            add_rows(total[k], self.index.flatten(), weighted.flatten(0, 1))
        return total

    def rows(self) -> Tensor:
        return torch.stack([self.sample(n).flatten() for n in range(self.index.shape[0])])

    def kept(self) -> Sequence[Tensor]:
        return (self.index, self.g) if self.present is None else (self.index, self.g, self.present)


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Adds row i to ``total[index_i]`` in a fixed order; returns ``total``."""
    if total.is_cuda:  # index_add_ is not deterministic there
        return total.index_put_((index,), rows, accumulate=True)
    return total.index_add_(0, index, rows)
