"""One use of one parameter in one batch: its per-sample gradients in a form that is not written out.

Letters: N samples, S shared positions of a sample, I fan-in, O fan-out; D is the shape of the tensor
that was used. Every class gives the same three things.
"""

from __future__ import annotations

import math
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

#: workspace for whatever must be unfolded or formed: about a CPU's cache, and what fills a GPU
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}


class Use(ABC):
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

    def gram(self, other: Use) -> Tensor:
        """⟨G_n, G'_m⟩ with the use of the same tensor in another batch, [N, N']."""
        return _wide(self.rows()) @ _wide(other.rows()).T

    def nbytes(self) -> int:
        """Bytes that keeping this use costs."""
        return sum(t.numel() * t.element_size() for t in self.kept())

    @abstractmethod
    def kept(self) -> Sequence[Tensor]:
        """The tensors this use holds."""


class DirectUse(Use):
    """Small per-sample gradients, written out: biases, scales, position embeddings.

    Args:
        gradients: ``[N, *D]``.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients

    def square(self) -> Tensor:
        return _wide(self.gradients).square().sum(0)

    def sample(self, n: int) -> Tensor:
        return self.gradients[n]

    def norm(self) -> Tensor:
        return _wide(self.rows()).square().sum(1)

    def dot(self, W: Tensor) -> Tensor:
        rows, columns = _alike(self.rows(), W.reshape(W.shape[0], -1))
        return rows @ columns.T

    def weighted_sum(self, c: Tensor) -> Tensor:
        weights, rows = _alike(c, self.rows())
        return (weights @ rows).view(-1, *self.gradients.shape[1:])

    def rows(self) -> Tensor:
        return self.gradients.reshape(self.gradients.shape[0], -1)  # D may be that of a scalar

    def kept(self) -> Sequence[Tensor]:
        return (self.gradients,)


class OuterUse(Use):
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

    def turned(self) -> OuterUse:
        """The same gradients as those of the transpose."""
        return OuterUse(self.a, self.g, not self.transposed)

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.transposed else x

    def square(self) -> Tensor:
        return self._turned(outer_square(self.a, self.g.unsqueeze(0)))

    def with_squares(self, squares: Tensor) -> Tensor:
        """Σ_n G_n², shape D, for one position in each sample and ``squares`` [N, O] in place of g²."""
        return self._turned(squares.mT @ _wide(self.a[:, 0]).square())

    def sample(self, n: int) -> Tensor:
        return self._turned(_wide(self.g[n]).mT @ _wide(self.a[n]))

    def norm(self) -> Tensor:
        return outer_norm(self.a, self.g.unsqueeze(0))[0]

    def dot(self, W: Tensor) -> Tensor:
        # einsum puts a dimension of size 1 before the matrix
        W = W.reshape(W.shape[0], *W.shape[-2:])
        return outer_dot(self.a, self.g.unsqueeze(0), self._turned(W))[0]

    def weighted_sum(self, c: Tensor) -> Tensor:
        return self._turned(outer_sum(self.a, self.g.unsqueeze(0), c.unsqueeze(1)))

    def rows(self) -> Tensor:
        return self._turned(_wide(self.g).mT @ _wide(self.a)).flatten(1)

    def gram(self, other: Use) -> Tensor:
        if not isinstance(other, OuterUse) or other.transposed != self.transposed:
            return super().gram(other)
        return outer_gram(self.a, self.g, other.a, other.g)

    def kept(self) -> Sequence[Tensor]:
        return (self.a, self.g)


class RowsUse(Use):
    """G_n adds row g_ns to row index_ns: a look-up table.

    Args:
        index: ``[N, S]`` int64.
        g: ``[N, S, F]``.
        shape: D = (rows, F).
    """

    def __init__(self, index: Tensor, g: Tensor, shape: torch.Size) -> None:
        self.index = index
        self.g = g
        self.shape = shape

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, row and gradient of each distinct (sample, row): [U], [U], [U, F]."""
        samples = torch.arange(self.index.shape[0], device=self.index.device).unsqueeze(1)
        key = samples * self.shape[0] + self.index
        distinct, place = torch.unique(key, return_inverse=True)
        wide = _wide(self.g)
        merged = wide.new_zeros(distinct.numel(), wide.shape[-1])
        _add_rows(merged, place.flatten(), wide.flatten(0, 1))
        return distinct // self.shape[0], distinct % self.shape[0], merged

    def square(self) -> Tensor:
        _, rows, merged = self._merged()
        return _add_rows(merged.new_zeros(self.shape), rows, merged.square_())

    def sample(self, n: int) -> Tensor:
        g = _wide(self.g[n])
        return _add_rows(g.new_zeros(self.shape), self.index[n], g)

    def norm(self) -> Tensor:
        samples, _, merged = self._merged()
        norms = merged.new_zeros(self.index.shape[0])
        return _add_rows(norms, samples, merged.square_().sum(1))

    def dot(self, W: Tensor) -> Tensor:
        # one k at a time: the looked-up rows are as large as g
        g, W = _alike(self.g, W)
        return torch.stack([(F.embedding(self.index, w) * g).sum((1, 2)) for w in W], 1)

    def weighted_sum(self, c: Tensor) -> Tensor:
        g, c = _alike(self.g, c)
        total = g.new_zeros(c.shape[0], *self.shape)
        for k, weights in enumerate(c):
            weighted = g * weights.view(-1, 1, 1)
            _add_rows(total[k], self.index.flatten(), weighted.flatten(0, 1))
        return total

    def rows(self) -> Tensor:
        return torch.stack([self.sample(n).flatten() for n in range(self.index.shape[0])])

    def kept(self) -> Sequence[Tensor]:
        return (self.index, self.g)


class ConvolutionUse(Use):
    """A convolution's weight, ``[O, I/groups, *kernel]``, unfolded a few samples at a time.

    For a transposed convolution the two tensors change places: its weight ``[I, O/groups, *kernel]``
    is that of the convolution which maps its output to its input.

    Args:
        inner: ``[N, R, I, *spatial]``, what the window slides over; R images per sample.
        outer: ``[N, R, O, *positions]``.
        shape: D.
        stride, padding, dilation, groups: of the convolution.
    """

    def __init__(
        self,
        inner: Tensor,
        outer: Tensor,
        shape: torch.Size,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        self._inner = inner
        self._outer = outer
        self._shape = shape
        self._stride = stride
        self._padding = padding
        self._dilation = dilation
        self._groups = groups

    def square(self) -> Tensor:
        total = None
        for a, g in self._chunks():
            part = torch.stack(
                [outer_square(ag, gg.unsqueeze(0)) for ag, gg in zip(a, g, strict=True)]
            )
            total = part if total is None else total.add_(part)
        assert total is not None
        return self._natural(total)

    def sample(self, n: int) -> Tensor:
        a, g = self._unfold(n, n + 1, self._padded(1))
        return self._natural(_wide(g[:, 0]).mT @ _wide(a[:, 0]))

    def norm(self) -> Tensor:
        parts = [
            torch.stack(
                [outer_norm(ag, gg.unsqueeze(0))[0] for ag, gg in zip(a, g, strict=True)]
            ).sum(0)
            for a, g in self._chunks()
        ]
        return torch.cat(parts)

    def dot(self, W: Tensor) -> Tensor:
        inner, outer, W = _alike(self._inner.flatten(0, 1), self._outer.flatten(0, 1), W)
        products = []
        for w in W:
            response = self._convolve(inner, w, outer)
            products.append((response * outer).reshape(self._inner.shape[0], -1).sum(1))
        return torch.stack(products, 1)

    def weighted_sum(self, c: Tensor) -> Tensor:
        inner, outer, c = _alike(self._inner.flatten(0, 1), self._outer.flatten(0, 1), c)
        images = self._inner.shape[1]
        per_image = c.repeat_interleave(images, 1)
        spread = [-1] + [1] * (outer.ndim - 1)
        return torch.stack(
            [self._weight_gradient(inner, outer * w.view(spread)) for w in per_image]
        )

    def rows(self) -> Tensor:
        return torch.stack([self.sample(n).flatten() for n in range(self._inner.shape[0])])

    def kept(self) -> Sequence[Tensor]:
        return (self._inner, self._outer)

    def _convolve(self, inner: Tensor, w: Tensor, outer: Tensor) -> Tensor:
        """The convolution itself, cut or padded to the positions of ``outer``."""
        zeros = (0,) * len(self._stride)
        response = torch.ops.aten.convolution(
            inner, w, None, self._stride, self._padding, self._dilation, False, zeros, self._groups
        )
        return response[tuple(slice(0, size) for size in outer.shape)]

    def _weight_gradient(self, inner: Tensor, outer: Tensor) -> Tensor:
        zeros = (0,) * len(self._stride)
        return torch.ops.aten.convolution_backward(
            outer,
            inner,
            inner.new_empty(self._shape),
            None,
            self._stride,
            self._padding,
            self._dilation,
            False,
            zeros,
            self._groups,
            (False, True, False),
        )[1]

    def _chunks(self) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """a and g of each group of channels for a few samples at a time, as windows where that saves the unfolding."""
        samples = self._inner.shape[0]
        in_windows = len(self._stride) == 2 and self._groups == 1 and self._dilation[1] == 1
        elements = self._inner[0].numel()
        if not in_windows or self._inner.is_cuda:  # the kernels unfold windows on CUDA
            positions = math.prod(self._outer.shape[3:])
            window = math.prod(self._shape[2:])
            elements = self._inner.shape[1] * self._inner.shape[2] * window * positions
        workspace = _CHUNK_BYTES.get(self._inner.device.type, _CHUNK_BYTES["cpu"])
        step = max(1, workspace // max(1, elements * self._inner.element_size()))
        padded = self._padded(min(step, samples))
        for start in range(0, samples, step):
            n = min(start + step, samples) - start
            if in_windows and self._inner.shape[1] == 1:
                # [n, P, Q, kernel height, kernel width · I]: neighbours in a row of the window are so in memory
                g = self._outer[start : start + n, 0].flatten(2).mT
                yield [self._windows(start, start + n, padded).flatten(4)], [g]
            else:
                a, g = self._unfold(start, start + n, padded)
                yield list(a), list(g)

    def _padded(self, samples: int) -> Tensor | None:
        """Room for the padded images of some samples, [B, *padded size, I], with zeros about them."""
        if not any(self._padding):
            return None
        images, channels, *spatial = self._inner.shape[1:]
        size = [s + 2 * p for s, p in zip(spatial, self._padding, strict=True)]
        return self._inner.new_zeros(samples * images, *size, channels)

    def _windows(self, start: int, stop: int, padded: Tensor | None) -> Tensor:
        """The windows of some samples' images, [B, *positions, *kernel, I], as a view of their padded copy.

        Channels come last, so that a window's row is a run of neighbours: kernel width times channels.
        """
        inner = self._inner[start:stop].flatten(0, 1).movedim(1, -1)
        if padded is None:
            x = inner.contiguous()
        else:
            x = padded[: len(inner)]
            middle = [
                slice(p, p + s) for s, p in zip(inner.shape[1:-1], self._padding, strict=True)
            ]
            where = (slice(None), *middle)
            x[where] = inner
        spatial = x.stride()[1:-1]
        return x.as_strided(
            (x.shape[0], *self._outer.shape[3:], *self._shape[2:], x.shape[-1]),
            (
                x.stride(0),
                *(s * t for s, t in zip(spatial, self._stride, strict=True)),
                *(s * d for s, d in zip(spatial, self._dilation, strict=True)),
                1,
            ),
        )

    def _unfold(self, start: int, stop: int, padded: Tensor | None) -> tuple[Tensor, Tensor]:
        """a [groups, n, S, window·I/groups] and g [groups, n, S, O/groups] of some samples."""
        view = self._windows(start, stop, padded)
        outer = self._outer[start:stop].flatten(0, 1)
        n, images, groups = stop - start, self._inner.shape[1], self._groups
        window = math.prod(self._shape[2:])
        a = view.reshape(n, -1, window, groups, view.shape[-1] // groups).permute(3, 0, 1, 2, 4)
        g = outer.reshape(n, images, groups, outer.shape[1] // groups, -1).permute(2, 0, 1, 4, 3)
        return a.flatten(3), g.reshape(groups, n, -1, g.shape[-1])

    def _natural(self, product: Tensor) -> Tensor:
        """[groups, O/groups, window·I/groups] as D."""
        fan_out = product.shape[0] * product.shape[1]
        return product.reshape(fan_out, *self._shape[2:], -1).movedim(-1, 1)


class SumUse(Use):
    """Several uses of one tensor that have no joint form; each sample's gradient is formed.

    Args:
        uses: uses of the same shape D.
        samples: N.
    """

    def __init__(self, uses: Sequence[Use], samples: int) -> None:
        self._uses = uses
        self._samples = samples

    def square(self) -> Tensor:
        total = _wide(self.sample(0)).square()
        for n in range(1, self._samples):
            total += _wide(self.sample(n)).square()
        return total

    def sample(self, n: int) -> Tensor:
        total = self._uses[0].sample(n)
        for use in self._uses[1:]:
            total = total + use.sample(n)
        return total

    def norm(self) -> Tensor:
        return torch.stack([_wide(self.sample(n)).square().sum() for n in range(self._samples)])

    def dot(self, W: Tensor) -> Tensor:
        return torch.stack([use.dot(W) for use in self._uses]).sum(0)

    def weighted_sum(self, c: Tensor) -> Tensor:
        return torch.stack([use.weighted_sum(c) for use in self._uses]).sum(0)

    def rows(self) -> Tensor:
        return torch.stack([use.rows() for use in self._uses]).sum(0)

    def kept(self) -> Sequence[Tensor]:
        return [t for use in self._uses for t in use.kept()]


class TiedUse(SumUse):
    """A matrix [R, F] that is also a look-up table of R rows, as of tied embedding and head.

    With A_n the gradient of sample n by the product and B_n by the look-up, which has the rows that n
    looked up alone, (A_n + B_n)² = A_n² + B_n² + 2 A_n B_n needs of A_n those rows only.

    Args:
        matrix: the uses in products, of shape (R, F).
        table: the uses as a table.
        samples: N.
    """

    def __init__(self, matrix: OuterUse, table: RowsUse, samples: int) -> None:
        self._matrix = OuterUse(matrix.g, matrix.a) if matrix.transposed else matrix
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
            by_look_up = _wide(self._table.g[n])
            merged = by_look_up.new_zeros(len(rows), by_look_up.shape[-1])
            _add_rows(merged, place, by_look_up)
            by_product = _wide(self._matrix.g[n][:, rows]).mT @ _wide(self._matrix.a[n])
            yield rows, by_product.mul_(merged)


def join(uses: Sequence[Use], samples: int) -> Use:
    """Several uses of one tensor as one, cross terms included: their positions side by side."""
    if len(uses) == 1:
        return uses[0]
    matrices = [u for u in uses if isinstance(u, OuterUse)]
    matrices = [u for u in matrices if u.transposed == matrices[0].transposed]
    if len(matrices) == len(uses):
        a = torch.cat([u.a for u in matrices], 1)
        return OuterUse(a, torch.cat([u.g for u in matrices], 1), matrices[0].transposed)
    tables = [u for u in uses if isinstance(u, RowsUse)]
    if len(tables) == len(uses):
        index = torch.cat([u.index for u in tables], 1)
        return RowsUse(index, torch.cat([u.g for u in tables], 1), tables[0].shape)
    if matrices and tables and len(matrices) + len(tables) == len(uses):
        matrix, table = join(matrices, samples), join(tables, samples)
        assert isinstance(matrix, OuterUse) and isinstance(table, RowsUse)
        return TiedUse(matrix, table, samples)
    written = [u.gradients for u in uses if isinstance(u, DirectUse)]
    if len(written) == len(uses):
        return DirectUse(torch.stack(written).sum(0))
    return SumUse(uses, samples)


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Adds row i to ``total[index_i]``, in an order that is the same each time; gives ``total``."""
    if total.is_cuda:  # index_add_ adds there in any order
        return total.index_put_((index,), rows, accumulate=True)
    return total.index_add_(0, index, rows)


def _wide(t: Tensor) -> Tensor:
    """At least float32, the dtype in which squares are summed."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def _alike(*tensors: Tensor) -> list[Tensor]:
    """In one dtype, the widest of theirs, and at least float32."""
    dtype = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype) for t in tensors]
