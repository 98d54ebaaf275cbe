"""One use of a weight along one vector as pairs: G_n = Σ_s g_ns a_nsᵀ, and the sums that factors are made of.

Letters: G groups of a convolution, each a block of its own, N samples, S positions, I fan-in with a joint bias's 1,
O fan-out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.dtypes import alike, wide
from curvext.gradients.outer_product import OuterGradient
from curvext.kernels.outer_square import outer_square
from curvext.kronecker.moments import InputMoment, counted, second_moment, symmetric_product

#: elements of per-sample gradients, or of unfolded patches, that are in memory at a time
CHUNK = 2 << 20
#: from so many on the positions of a sample are a product of their own, which stays in the cache
_POSITIONS = 16


class Pairs(ABC):
    """Pairs (a, g) of a use, of which no per-sample gradient is formed but in small chunks."""

    #: g, ``[G, N, S, O]``
    g: Tensor

    def reached(self) -> Tensor:
        """Which positions have a gradient, ``[G, N, S]``."""
        return self.g.abs().amax(3) != 0  # a fraction of the time of (g != 0).any

    @abstractmethod
    def present(self) -> Tensor:
        """Which positions there are at all, ``[G, N, S]``: looked-up padding rows are none."""

    def output_moment(self, dense: bool, summed: bool) -> Tensor:
        """Σ_ns g gᵀ, or of the sums over s, ``[G, O, O]`` or its diagonal."""
        g = wide(self.g)
        g = g.sum(2) if summed and g.shape[2] > 1 else g.flatten(1, 2)
        return second_moment(g, None, dense)

    @abstractmethod
    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> InputMoment:
        """Σ_ns a aᵀ over some ``positions``, or of the means over them of each n, with Σ a for a bias."""

    def count(self, together: bool) -> int:
        """How many rows the sums are of, with the positions of a datum put ``together`` or not."""
        _, samples, positions, _ = self.g.shape
        return samples if together else samples * positions

    def output_rows(self, summed: bool) -> Tensor:
        """What :meth:`output_moment` sums, ``[M, O]``, of a use of one group."""
        g = wide(self.g[0])
        return g.sum(1) if summed and g.shape[1] > 1 else g.flatten(0, 1)

    def input_rows(self, positions: Tensor, averaged: bool) -> Tensor | None:
        """What :meth:`input_moment` sums, ``[M, I]`` with a bias, of a use of one group; None if not at hand."""
        return None

    @abstractmethod
    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        """Σ_n (Q_Γᵀ G_n Q_A)², ``[G, O, I]``; None stands for the axes."""

    @abstractmethod
    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        """Σ_n G_n G_nᵀ and Σ_n G_nᵀ G_n, or their diagonals."""


class PatchPairs(Pairs):
    """Pairs whose a comes in chunks of samples.

    Args:
        g: ``[G, N, S, O]``.
        bias: whether a is extended by a 1.
    """

    def __init__(self, g: Tensor, bias: bool) -> None:
        self.g = g
        self._bias = bias
        self._averages: Tensor | None = None

    @abstractmethod
    def _patches(self, start: int, stop: int) -> Tensor:
        """a of some samples without a bias, ``[G, n, S, I]``."""

    def _extended(self, start: int, stop: int) -> Tensor:
        """The same with a bias's 1 behind each."""
        return F.pad(self._patches(start, stop), (0, 1), value=1.0)

    @abstractmethod
    def _width(self) -> int:
        """I without a bias."""

    def present(self) -> Tensor:
        return torch.ones(self.g.shape[:3], dtype=torch.bool, device=self.g.device)

    def _chunks(self, per_sample: int) -> Iterator[slice]:
        """Samples, so many that ``per_sample`` elements for each stay few."""
        samples = self.g.shape[1]
        step = max(1, CHUNK // max(1, per_sample))
        for start in range(0, samples, step):
            yield slice(start, min(start + step, samples))

    def _pairs(self, per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
        """a with a bias, and g, of the samples of each chunk."""
        patches = self._extended if self._bias else self._patches
        for here in self._chunks(per_sample):
            a, g = alike(patches(here.start, here.stop), self.g[:, here])
            yield a, g

    def _in_patches(self) -> int:
        groups, _, positions, _ = self.g.shape
        return groups * positions * self._width()

    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> InputMoment:
        if averaged and positions.shape[2] > 1:
            means = self._averages = self._means(positions)
            matrix, sums = second_moment(means, None, dense), means.sum(1)
        else:
            matrix, sums = self._moment(positions, dense)
        return InputMoment(matrix, sums if self._bias else None, counted(positions, averaged))

    def input_rows(self, positions: Tensor, averaged: bool) -> Tensor | None:
        if averaged and positions.shape[2] > 1:
            assert self._averages is not None
            x, w = self._averages[0], positions[0].any(1)
        else:
            found = self._rows()
            if found is None:
                return None
            w = positions[0].flatten()
            x = found * w.unsqueeze(1)  # a copy: the user's data may be written to
        return torch.cat([x, w.to(x.dtype).unsqueeze(1)], 1) if self._bias else x

    def _rows(self) -> Tensor | None:
        """a without a bias as it lies, ``[N S, I]``; None where it does not."""
        return None

    def _moment(self, positions: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
        """Σ_ns a aᵀ, ``[G, I, I]`` or its diagonal, and Σ_ns a, ``[G, I]``, without a bias."""
        total: Tensor | None = None
        for here in self._chunks(self._in_patches()):
            a = wide(self._patches(here.start, here.stop)).flatten(1, 2)
            w = positions[:, here].flatten(1).to(a.dtype)
            part, sums = second_moment(a, w, dense), (w.unsqueeze(1) @ a).squeeze(1)
            if total is None:
                total, total_sums = part, sums
            else:
                total.add_(part)
                total_sums.add_(sums)
        assert total is not None
        return total, total_sums

    def _means(self, positions: Tensor) -> Tensor:
        """The mean of a over some positions of each sample, ``[G, N, I]``, without a bias; zero over none."""
        parts = []
        for here in self._chunks(self._in_patches()):
            a = wide(self._patches(here.start, here.stop))
            w = positions[:, here].to(a.dtype)
            parts.append((w.unsqueeze(2) @ a).squeeze(2) / w.sum(2, keepdim=True).clamp(min=1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        total: Tensor | None = None
        for a, g in self._pairs(self._in_patches()):
            a = a if inner is None else _rotated(a, inner)
            g = g if out is None else _rotated(g, out)
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
        for a, g in self._pairs(size):
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

    def _rows(self) -> Tensor:
        return wide(self._a[0]).flatten(0, 1)


def _rotated(x: Tensor, basis: Tensor) -> Tensor:
    """x Q for x ``[G, n, S, D]`` and Q ``[G, D, r]``."""
    if x.shape[2] >= _POSITIONS:
        return x @ basis.unsqueeze(1)
    return (x.flatten(1, 2) @ basis).unflatten(1, x.shape[1:3])


def _sides_by_positions(
    a: Tensor, g: Tensor, dense_out: bool, dense_in: bool
) -> tuple[Tensor, Tensor]:
    """Σ_n g_nᵀ (a_n a_nᵀ) g_n and Σ_n a_nᵀ (g_n g_nᵀ) a_n, by the inner products of positions."""

    def side(x: Tensor, y: Tensor, dense: bool) -> Tensor:
        if y.shape[2] == 1:  # one position: ‖y‖² x xᵀ
            return second_moment(x[:, :, 0], y[:, :, 0].square().sum(2), dense)
        mixed = ((y @ y.mT) @ x).flatten(1, 2)
        x = x.flatten(1, 2)
        return symmetric_product(mixed, x) if dense else (mixed * x).sum(1)

    return side(g, a, dense_out), side(a, g, dense_in)


def _sides_by_gradients(
    a: Tensor, g: Tensor, dense_out: bool, dense_in: bool
) -> tuple[Tensor, Tensor]:
    """The same by the gradients of a few samples, [G, n, O, I]."""
    gradients = g.mT @ a
    by_row = gradients.transpose(2, 3).flatten(1, 2)  # [G, n I, O]
    by_column = gradients.flatten(1, 2)  # [G, n O, I]
    return second_moment(by_row, None, dense_out), second_moment(by_column, None, dense_in)
