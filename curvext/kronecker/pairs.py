"""One use of a weight along one vector as pairs: G_n = Σ_s g_ns a_nsᵀ, and the sums that factors are made of.

Letters: G groups of a convolution, each a block of its own, N samples, S positions, I fan-in with a joint bias's 1,
O fan-out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.structured import (
    OuterGradient,
    RowsGradient,
    StructuredGradient,
    alike,
    wide,
)
from curvext.kernels.outer_square import outer_square
from curvext.kronecker.moments import second_moment

#: elements of per-sample gradients, or of unfolded patches, that are in memory at a time
_CHUNK = 2 << 20


class Pairs(ABC):
    """Pairs (a, g) of a use, of which no per-sample gradient is formed but in small chunks."""

    #: g, ``[G, N, S, O]``
    g: Tensor

    def reached(self) -> Tensor:
        """Which positions have a gradient, ``[G, N, S]``."""
        return (self.g != 0).any(3)

    @abstractmethod
    def present(self) -> Tensor:
        """Which positions there are at all, ``[G, N, S]``: looked-up padding rows are none."""

    def output_moment(self, dense: bool, summed: bool) -> Tensor:
        """Σ_ns g gᵀ, or of the sums over s, ``[G, O, O]`` or its diagonal."""
        g = wide(self.g)
        g = g.sum(2) if summed else g.flatten(1, 2)
        return second_moment(g, None, dense)

    @abstractmethod
    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> Tensor:
        """Σ_ns a aᵀ over some ``positions``, or of the means over them of each n, ``[G, I, I]`` or its diagonal."""

    @abstractmethod
    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        """Σ_n (Q_Γᵀ G_n Q_A)², ``[G, O, I]``; None stands for the axes."""

    @abstractmethod
    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        """Σ_n G_n G_nᵀ and Σ_n G_nᵀ G_n, or their diagonals."""


class PatchPairs(Pairs):
    """Pairs whose a is had in chunks of samples.

    Args:
        g: ``[G, N, S, O]``.
        bias: whether a is extended by a 1.
    """

    def __init__(self, g: Tensor, bias: bool) -> None:
        self.g = g
        self._bias = bias

    @abstractmethod
    def _patches(self, start: int, stop: int) -> Tensor:
        """a of some samples without a bias, ``[G, n, S, I]``."""

    @abstractmethod
    def _width(self) -> int:
        """I without a bias."""

    def present(self) -> Tensor:
        return torch.ones(self.g.shape[:3], dtype=torch.bool, device=self.g.device)

    def _chunks(self, per_sample: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Samples, their a and their g, so many that a workspace of ``per_sample`` elements for each stays small."""
        samples = self.g.shape[1]
        step = max(1, _CHUNK // max(1, per_sample))
        for start in range(0, samples, step):
            here = slice(start, min(start + step, samples))
            a = self._patches(here.start, here.stop)
            if self._bias:
                a = F.pad(a, (0, 1), value=1.0)
            a, g = alike(a, self.g[:, here])
            yield here, a, g

    def _in_patches(self) -> int:
        groups, _, positions, _ = self.g.shape
        return groups * positions * self._width()

    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> Tensor:
        total: Tensor | None = None
        for here, a, _ in self._chunks(self._in_patches()):
            w = positions[:, here].to(a.dtype)
            if averaged:
                count = w.sum(2)
                mean = (w.unsqueeze(2) @ a).squeeze(2) / count.clamp(min=1).unsqueeze(2)
                part = second_moment(mean, None, dense)
            else:
                part = second_moment(a.flatten(1, 2), w.flatten(1, 2), dense)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        total: Tensor | None = None
        for _, a, g in self._chunks(self._in_patches()):
            a = a if inner is None else a @ inner.unsqueeze(1)
            g = g if out is None else g @ out.unsqueeze(1)
            part = torch.stack(
                [outer_square(ag, gg.unsqueeze(0)) for ag, gg in zip(a, g, strict=True)]
            )
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        groups, _, positions, fan_out = self.g.shape
        fan_in = self._width() + self._bias
        by_positions = positions < min(fan_out, fan_in)
        size = (
            max(self._in_patches(), groups * positions**2)
            if by_positions
            else max(self._in_patches(), groups * fan_out * fan_in)
        )
        left: Tensor | None = None
        right: Tensor | None = None
        for _, a, g in self._chunks(size):
            products = _sides_by_positions if by_positions else _sides_by_gradients
            one, other = products(a, g, dense_out, dense_in)
            left = one if left is None else left.add_(one)
            right = other if right is None else right.add_(other)
        assert left is not None and right is not None
        return left, right


class MatrixPairs(PatchPairs):
    """The pairs of a matrix, as they come."""

    def __init__(self, use: OuterGradient, bias: bool) -> None:
        super().__init__(use.g.unsqueeze(0), bias)
        self._a = use.a.unsqueeze(0)

    def _patches(self, start: int, stop: int) -> Tensor:
        return self._a[:, start:stop]

    def _width(self) -> int:
        return self._a.shape[3]


class ConvolutionPairs(PatchPairs):
    """The pairs of a convolution: the patches of its padded input, the channel before the place in the window.

    A transposed convolution is one over its input with zeros between the pixels, the window turned round.
    """

    def __init__(self, use: ConvolutionGradient, bias: bool) -> None:
        gradient = use.gradient
        split = gradient.flatten(3).unflatten(2, (use.groups, -1))  # [N, R, G, O, S]
        super().__init__(split.permute(2, 0, 1, 4, 3).flatten(2, 3), bias)
        self._use = use
        self._positions = gradient.shape[3:]
        self._window = use.shape[2:]

    def _width(self) -> int:
        channels = self._use.input.shape[2]
        return channels // self._use.groups * prod(self._window)

    def _patches(self, start: int, stop: int) -> Tensor:
        use = self._use
        x = use.input[start:stop].flatten(0, 1)
        if use.transposed:
            windows = self._windows(self._spread(x), (1,) * len(self._window))
            windows = windows.flip([-d - 1 for d in range(len(self._window))])
        else:
            pads = [p for size in reversed(use.padding) for p in (size, size)]
            windows = self._windows(F.pad(x, pads), use.stride)
        # [n R, I, *positions, *window] -> [G, n, R S, I/G window]
        rank = len(self._window)
        split = windows.unflatten(1, (use.groups, -1)).movedim(1, 0)
        last = split.movedim(2, 2 + rank)  # [G, n R, *positions, I/G, *window]
        return last.reshape(use.groups, stop - start, -1, self._width())

    def _spread(self, x: Tensor) -> Tensor:
        """The input of a transposed convolution with zeros between its pixels and about them."""
        use, rank = self._use, len(self._window)
        sizes = [(s - 1) * t + 1 for s, t in zip(x.shape[2:], use.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        where = (slice(None), slice(None), *(slice(None, None, t) for t in use.stride))
        spread[where] = x
        pads: list[int] = []
        for d in reversed(range(rank)):
            before = use.dilation[d] * (self._window[d] - 1) - use.padding[d]
            after = self._positions[d] + use.dilation[d] * (self._window[d] - 1) - before - sizes[d]
            pads += [before, after]
        return F.pad(spread, pads)

    def _windows(self, x: Tensor, stride: tuple[int, ...]) -> Tensor:
        """[B, I, *positions, *window] as a view of a padded input."""
        x = x.contiguous()
        spatial = x.stride()[2:]
        return x.as_strided(
            (*x.shape[:2], *self._positions, *self._window),
            (
                *x.stride()[:2],
                *(s * t for s, t in zip(spatial, stride, strict=True)),
                *(s * d for s, d in zip(spatial, self._use.dilation, strict=True)),
            ),
        )


class TablePairs(Pairs):
    """The pairs of a look-up table, ``[rows, F]``: a is one-hot, I = rows and O = F."""

    def __init__(self, use: RowsGradient) -> None:
        self.g = use.g.unsqueeze(0)
        self._use = use
        self._rows = use.shape[0]

    def present(self) -> Tensor:
        if self._use.present is not None:
            return self._use.present.unsqueeze(0)
        return torch.ones_like(self._use.index, dtype=torch.bool).unsqueeze(0)

    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> Tensor:
        index, dtype = self._use.index, wide(self.g).dtype
        w = positions[0].to(dtype)
        if not averaged:
            total = w.new_zeros(self._rows)
            total.index_put_((index.flatten(),), w.flatten(), accumulate=True)
            return (total.diag() if dense else total).unsqueeze(0)
        share = w / w.sum(1, keepdim=True).clamp(min=1)
        # ā ā^T has share_s share_t at (index_s, index_t); its diagonal where the two are one row
        products = share.unsqueeze(2) * share.unsqueeze(1)
        return self._scattered(products, dense)

    def _scattered(self, products: Tensor, dense: bool) -> Tensor:
        """Σ_n P_nᵀ X_n P_n for X ``[N, S, S]``, P_n the one-hot rows of sample n; or its diagonal."""
        index = self._use.index
        if dense:
            total = products.new_zeros(self._rows, self._rows)
            rows = index.unsqueeze(2).expand_as(products)
            total.index_put_(
                (rows, index.unsqueeze(1).expand_as(products)), products, accumulate=True
            )
            return total.unsqueeze(0)
        total = products.new_zeros(self._rows)
        alike_rows = (products * self._same(products.dtype)).sum(2)
        total.index_put_((index.flatten(),), alike_rows.flatten(), accumulate=True)
        return total.unsqueeze(0)

    def _same(self, dtype: torch.dtype) -> Tensor:
        index = self._use.index
        return (index.unsqueeze(2) == index.unsqueeze(1)).to(dtype)

    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        g = wide(self._use.g)
        g = g if out is None else g @ out[0]
        if inner is None:
            return RowsGradient(self._use.index, g, self._use.shape).square().mT.unsqueeze(0)
        return outer_square(inner[0][self._use.index], g.unsqueeze(0)).unsqueeze(0)

    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        g = wide(self._use.g)
        left = ((self._same(g.dtype) @ g).flatten(0, 1), g.flatten(0, 1))
        out = left[0].mT @ left[1] if dense_out else (left[0] * left[1]).sum(0)
        inner = self._scattered(g @ g.mT, True) if dense_in else None
        if inner is None:
            inner = self._use.square().sum(1).unsqueeze(0)
        return out.unsqueeze(0), inner


def pairs_of(use: StructuredGradient, bias: bool) -> Pairs:
    """The pairs of a use that has them."""
    if isinstance(use, OuterGradient):
        return MatrixPairs(use, bias)
    if isinstance(use, ConvolutionGradient):
        return ConvolutionPairs(use, bias)
    assert isinstance(use, RowsGradient)
    return TablePairs(use)


def _sides_by_positions(
    a: Tensor, g: Tensor, dense_out: bool, dense_in: bool
) -> tuple[Tensor, Tensor]:
    """Σ_n g_nᵀ (a_n a_nᵀ) g_n and Σ_n a_nᵀ (g_n g_nᵀ) a_n, by the inner products of positions."""

    def side(x: Tensor, y: Tensor, dense: bool) -> Tensor:
        if y.shape[2] == 1:  # one position: ‖y‖² x xᵀ
            return second_moment(x[:, :, 0], y[:, :, 0].square().sum(2), dense)
        mixed = ((y @ y.mT) @ x).flatten(1, 2)
        x = x.flatten(1, 2)
        return mixed.mT @ x if dense else (mixed * x).sum(1)

    return side(g, a, dense_out), side(a, g, dense_in)


def _sides_by_gradients(
    a: Tensor, g: Tensor, dense_out: bool, dense_in: bool
) -> tuple[Tensor, Tensor]:
    """The same by the gradients of a few samples, [G, n, O, I]."""
    gradients = g.mT @ a
    by_row = gradients.transpose(2, 3).flatten(1, 2)  # [G, n I, O]
    by_column = gradients.flatten(1, 2)  # [G, n O, I]
    return second_moment(by_row, None, dense_out), second_moment(by_column, None, dense_in)
