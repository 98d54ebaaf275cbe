"""Several uses of one tensor, joined into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from curvext.dtypes import wide
from curvext.gradients.dense import DenseGradient
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient, add_rows
from curvext.gradients.structured import StructuredGradient


class SumGradient(StructuredGradient):
    """Several uses of one tensor without a joint form; each sample's gradient is materialised.

    Args:
        uses: uses of the same shape D.
        samples: N.
    """

    def __init__(self, uses: Sequence[StructuredGradient], samples: int) -> None:
        self._uses = uses
        self._samples = samples

    def square(self) -> Tensor:
        total = wide(self.sample(0)).square()
        for n in range(1, self._samples):
            total += wide(self.sample(n)).square()
        return total

    def sample(self, n: int) -> Tensor:
        total = self._uses[0].sample(n)
        for use in self._uses[1:]:
            total = total + use.sample(n)
        return total

    def norm(self) -> Tensor:
        return torch.stack([wide(self.sample(n)).square().sum() for n in range(self._samples)])

    def dot(self, W: Tensor) -> Tensor:
        return torch.stack([use.dot(W) for use in self._uses]).sum(0)

    def weighted_sum(self, c: Tensor) -> Tensor:
        return torch.stack([use.weighted_sum(c) for use in self._uses]).sum(0)

    def rows(self) -> Tensor:
        return torch.stack([use.rows() for use in self._uses]).sum(0)

    def kept(self) -> Sequence[Tensor]:
        return [t for use in self._uses for t in use.kept()]


class TiedGradient(SumGradient):
    """A matrix [R, F] that is also a look-up table of R rows, as of tied embedding and head.

    With A_n the gradient of sample n by the product and B_n by the look-up, which is nonzero only in the rows that
    n looked up, the cross term of (A_n + B_n)² = A_n² + B_n² + 2 A_n B_n needs only those rows of A_n.

    Args:
        matrix: the uses in products, of shape (R, F).
        table: the uses as a table.
        samples: N.
    """

    def __init__(self, matrix: OuterGradient, table: RowsGradient, samples: int) -> None:
        self._matrix = OuterGradient(matrix.g, matrix.a) if matrix.transposed else matrix
        self._table = table
        super().__init__([self._matrix, table], samples)

    def square(self) -> Tensor:
        total = self._matrix.square().add_(self._table.square())
        for rows, cross in self._cross_terms():
            total.index_add_(0, rows, cross, alpha=2)
        return total.clamp_(min=0)  # where uses cancel, rounding may leave a negative number

    def norm(self) -> Tensor:
        cross = torch.stack([cross.sum() for _, cross in self._cross_terms()])
        return (self._matrix.norm() + self._table.norm()).add_(cross, alpha=2).clamp_(min=0)

    def _cross_terms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each sample the distinct rows it looked up, [U], and A_n B_n there, [U, F]."""
        for n in range(self._samples):
            rows, place = torch.unique(self._table.index[n], return_inverse=True)
            by_look_up = wide(self._table.g[n])
            merged = by_look_up.new_zeros(len(rows), by_look_up.shape[-1])
            add_rows(merged, place, by_look_up)
            by_product = wide(self._matrix.g[n][:, rows]).mT @ wide(self._matrix.a[n])
            yield rows, by_product.mul_(merged)


def join(uses: Sequence[StructuredGradient], samples: int) -> StructuredGradient:
    """Joins several uses of one tensor, cross terms included, by concatenating their positions."""
    if len(uses) == 1:
        return uses[0]
    matrices = [u for u in uses if isinstance(u, OuterGradient)]
    matrices = [u for u in matrices if u.transposed == matrices[0].transposed]
    if len(matrices) == len(uses):
        a = torch.cat([u.a for u in matrices], 1)
        return OuterGradient(a, torch.cat([u.g for u in matrices], 1), matrices[0].transposed)
    tables = [u for u in uses if isinstance(u, RowsGradient)]
    if len(tables) == len(uses):
        index = torch.cat([u.index for u in tables], 1)
        g = torch.cat([u.g for u in tables], 1)
        return RowsGradient(index, g, tables[0].shape, _present(tables))
    if matrices and tables and len(matrices) + len(tables) == len(uses):
        matrix, table = join(matrices, samples), join(tables, samples)
        assert isinstance(matrix, OuterGradient) and isinstance(table, RowsGradient)
        return TiedGradient(matrix, table, samples)
    written = [u.gradients for u in uses if isinstance(u, DenseGradient)]
    if len(written) == len(uses):
        return DenseGradient(torch.stack(written).sum(0))
    return SumGradient(uses, samples)


def _present(tables: Sequence[RowsGradient]) -> Tensor | None:
    """A mask of the positions of several look-ups that are not padding."""
    if all(table.present is None for table in tables):
        return None
    masks = [
        torch.ones_like(t.index, dtype=torch.bool) if t.present is None else t.present
        for t in tables
    ]
    return torch.cat(masks, 1)
