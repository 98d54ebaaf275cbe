"""One use of one parameter in one batch: its per-sample gradients in a form that is not written out.

Letters: N samples, S shared positions of a sample, I fan-in, O fan-out; D is the shape of the tensor
that was used. Every class gives the same three things.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.kernels.outer_dot import outer_dot
from curvext.kernels.outer_gram import outer_gram
from curvext.kernels.outer_norm import outer_norm
from curvext.kernels.outer_square import outer_square
from curvext.kernels.outer_sum import outer_sum


class StructuredGradient(ABC):
    """Per-sample gradients G_n, each of shape D, of one use.

    What it holds may be in reduced precision, as it is beneath autocast, and vectors in their own dtype: whatever is
    made of the two is exact products summed in float32, or in float64 where that comes in.
    """

    @abstractmethod
    def square(self) -> Tensor:
        """Σ_n G_n², shape D."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """G_n, shape D."""

    @abstractmethod
    def norm(self) -> Tensor:
        """‖G_n‖², shape [N]."""

    @abstractmethod
    def dot(self, W: Tensor) -> Tensor:
        """⟨G_n, W_k⟩ for W [K, *D], shape [N, K]."""

    @abstractmethod
    def weighted_sum(self, c: Tensor) -> Tensor:
        """Σ_n c_kn G_n for c [K, N], shape [K, *D]."""

    @abstractmethod
    def rows(self) -> Tensor:
        """All G_n written out, [N, numel D]."""

    def gram(self, other: StructuredGradient) -> Tensor:
        """⟨G_n, G'_m⟩ with the use of the same tensor in another batch, [N, N']."""
        return wide(self.rows()) @ wide(other.rows()).T

    def nbytes(self) -> int:
        """Bytes that keeping this use costs."""
        return sum(t.numel() * t.element_size() for t in self.kept())

    @abstractmethod
    def kept(self) -> Sequence[Tensor]:
        """The tensors this use holds."""


class DenseGradient(StructuredGradient):
    """Small per-sample gradients, written out: biases, scales, position embeddings.

    Args:
        gradients: ``[N, *D]``.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients

    def square(self) -> Tensor:
        return wide(self.gradients).square().sum(0)

    def sample(self, n: int) -> Tensor:
        return self.gradients[n]

    def norm(self) -> Tensor:
        return wide(self.rows()).square().sum(1)

    def dot(self, W: Tensor) -> Tensor:
        rows, columns = alike(self.rows(), W.reshape(W.shape[0], -1))
        return rows @ columns.T

    def weighted_sum(self, c: Tensor) -> Tensor:
        weights, rows = alike(c, self.rows())
        return (weights @ rows).view(-1, *self.gradients.shape[1:])

    def rows(self) -> Tensor:
        return self.gradients.reshape(self.gradients.shape[0], -1)  # D may be that of a scalar

    def kept(self) -> Sequence[Tensor]:
        return (self.gradients,)


class OuterGradient(StructuredGradient):
    """G_n = Σ_s g_ns a_nsᵀ ∈ O×I, the use of a matrix, or of its transpose.

    Args:
        a: ``[N, S, I]``.
        g: ``[N, S, O]``.
        transposed: whether D is (I, O), what was used being the transpose of an O×I matrix.
    """

    def __init__(self, a: Tensor, g: Tensor, transposed: bool = False) -> None:
        self.a = a
        self.g = g
        self.transposed = transposed

    def turned(self) -> OuterGradient:
        """The same gradients as those of the transpose."""
        return OuterGradient(self.a, self.g, not self.transposed)

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.transposed else x

    def square(self) -> Tensor:
        return self._turned(outer_square(self.a, self.g.unsqueeze(0)))

    def with_squares(self, squares: Tensor) -> Tensor:
        """Σ_n G_n², shape D, for one position in each sample and ``squares`` [N, O] in place of g²."""
        return self._turned(squares.mT @ wide(self.a[:, 0]).square())

    def sample(self, n: int) -> Tensor:
        return self._turned(wide(self.g[n]).mT @ wide(self.a[n]))

    def norm(self) -> Tensor:
        return outer_norm(self.a, self.g.unsqueeze(0))[0]

    def dot(self, W: Tensor) -> Tensor:
        # einsum puts a dimension of size 1 before the matrix
        W = W.reshape(W.shape[0], *W.shape[-2:])
        return outer_dot(self.a, self.g.unsqueeze(0), self._turned(W))[0]

    def weighted_sum(self, c: Tensor) -> Tensor:
        return self._turned(outer_sum(self.a, self.g.unsqueeze(0), c.unsqueeze(1)))

    def rows(self) -> Tensor:
        return self._turned(wide(self.g).mT @ wide(self.a)).flatten(1)

    def gram(self, other: StructuredGradient) -> Tensor:
        if not isinstance(other, OuterGradient) or other.transposed != self.transposed:
            return super().gram(other)
        return outer_gram(self.a, self.g, other.a, other.g)

    def kept(self) -> Sequence[Tensor]:
        return (self.a, self.g)


class RowsGradient(StructuredGradient):
    """G_n adds row g_ns to row index_ns: a look-up table.

    Args:
        index: ``[N, S]`` int64.
        g: ``[N, S, F]``.
        shape: D = (rows, F).
        present: ``[N, S]``, false where padding was looked up, whose g is zero; None if it is true everywhere.
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
        _add_rows(merged, place.flatten(), g.flatten(0, 1))
        return distinct // self.shape[0], distinct % self.shape[0], merged

    def square(self) -> Tensor:
        _, rows, merged = self._merged()
        return _add_rows(merged.new_zeros(self.shape), rows, merged.square_())

    def sample(self, n: int) -> Tensor:
        g = wide(self.g[n])
        return _add_rows(g.new_zeros(self.shape), self.index[n], g)

    def norm(self) -> Tensor:
        samples, _, merged = self._merged()
        norms = merged.new_zeros(self.index.shape[0])
        return _add_rows(norms, samples, merged.square_().sum(1))

    def dot(self, W: Tensor) -> Tensor:
        # one k at a time: the looked-up rows are as large as g
        g, W = alike(self.g, W)
        return torch.stack([(F.embedding(self.index, w) * g).sum((1, 2)) for w in W], 1)

    def weighted_sum(self, c: Tensor) -> Tensor:
        g, c = alike(self.g, c)
        total = g.new_zeros(c.shape[0], *self.shape)
        for k, weights in enumerate(c):
            weighted = g * weights.view(-1, 1, 1)
            _add_rows(total[k], self.index.flatten(), weighted.flatten(0, 1))
        return total

    def rows(self) -> Tensor:
        return torch.stack([self.sample(n).flatten() for n in range(self.index.shape[0])])

    def kept(self) -> Sequence[Tensor]:
        return (self.index, self.g) if self.present is None else (self.index, self.g, self.present)


class SumGradient(StructuredGradient):
    """Several uses of one tensor that have no joint form; each sample's gradient is formed.

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

    With A_n the gradient of sample n by the product and B_n by the look-up, which has the rows that n
    looked up alone, (A_n + B_n)² = A_n² + B_n² + 2 A_n B_n needs of A_n those rows only.

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
        return total.clamp_(min=0)  # of opposite uses rounding may leave less than nothing

    def norm(self) -> Tensor:
        cross = torch.stack([cross.sum() for _, cross in self._cross_terms()])
        return (self._matrix.norm() + self._table.norm()).add_(cross, alpha=2).clamp_(min=0)

    def _cross_terms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each sample the distinct rows it looked up, [U], and A_n B_n there, [U, F]."""
        for n in range(self._samples):
            rows, place = torch.unique(self._table.index[n], return_inverse=True)
            by_look_up = wide(self._table.g[n])
            merged = by_look_up.new_zeros(len(rows), by_look_up.shape[-1])
            _add_rows(merged, place, by_look_up)
            by_product = wide(self._matrix.g[n][:, rows]).mT @ wide(self._matrix.a[n])
            yield rows, by_product.mul_(merged)


def join(uses: Sequence[StructuredGradient], samples: int) -> StructuredGradient:
    """Several uses of one tensor as one, cross terms included: their positions side by side."""
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
    """Which positions of several look-ups are no padding."""
    if all(table.present is None for table in tables):
        return None
    masks = [
        torch.ones_like(t.index, dtype=torch.bool) if t.present is None else t.present
        for t in tables
    ]
    return torch.cat(masks, 1)


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Adds row i to ``total[index_i]``, in an order that is the same each time; gives ``total``."""
    if total.is_cuda:  # index_add_ adds there in any order
        return total.index_put_((index,), rows, accumulate=True)
    return total.index_add_(0, index, rows)


def wide(t: Tensor) -> Tensor:
    """At least float32, the dtype in which squares are summed."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def alike(*tensors: Tensor) -> list[Tensor]:
    """In one dtype, the widest of theirs, and at least float32."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]
