"""Σ_m w_m x_m x_mᵀ, the sum that every factor is, and that of inputs with their 1 for a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvext.dtypes import wide
from curvext.kernels.outer_cov import outer_cov
from curvext.kronecker.spectral import symmetric

#: from this width on one triangle takes less time than the whole product
_TRIANGLE = 256
#: columns of a strip of that triangle
_STRIP = 128


def second_moment(x: Tensor, w: Tensor | None, dense: bool) -> Tensor:
    """Σ_m w_m x_m x_mᵀ for x ``[G, M, D]`` and w ``[G, M]`` or None for ones.

    Returns:
        ``[G, D, D]``, symmetric to the last bit, or its diagonal ``[G, D]`` where not ``dense``, in at least float32.
    """
    x = wide(x)
    if dense and x.shape[2] >= _TRIANGLE:
        ones = x.new_ones(x.shape[:2]) if w is None else w.to(x.dtype)
        sums = [outer_cov(rows, some) for rows, some in zip(x, ones, strict=True)]
        return sums[0].unsqueeze(0) if len(sums) == 1 else torch.stack(sums)
    weighted = x if w is None else x * w.to(x.dtype).unsqueeze(2)
    return symmetric(x.mT @ weighted) if dense else (x * weighted).sum(1)


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right, of which it is known that it is symmetric, for two ``[G, M, D]``: by the strips of one triangle.

    Returns:
        ``[G, D, D]``, symmetric to the last bit.
    """
    groups, _, width = right.shape
    if width < _TRIANGLE:
        return symmetric(left.mT @ right)
    product = right.new_empty(groups, width, width)
    for start in range(0, width, _STRIP):
        strip = slice(start, start + _STRIP)
        product[:, strip, start:] = left[:, :, strip].mT @ right[:, :, start:]
    above = product.triu(
        1
    )  # without the diagonal, on both sides of which the tiles of the strips were made
    return above + above.mT + torch.diag_embed(product.diagonal(dim1=1, dim2=2))


@dataclass
class InputMoment:
    """Sums over positions, or over the means of data, of inputs a without the 1 that a joint bias adds to them.

    Attributes:
        matrix: Σ a aᵀ, ``[G, I, I]``, or its diagonal ``[G, I]``.
        sums: Σ a, ``[G, I]``, where there is a bias; else None.
        count: how many there are, ``[G]``, int64.
    """

    matrix: Tensor
    sums: Tensor | None
    count: Tensor

    @property
    def side(self) -> int:
        """I with a bias."""
        return self.matrix.shape[1] + (self.sums is not None)

    def add(self, other: InputMoment) -> InputMoment:
        """Adds those of other data; gives itself."""
        self.matrix.add_(other.matrix)
        self.count.add_(other.count)
        if self.sums is not None:
            assert other.sums is not None
            self.sums.add_(other.sums)
        return self

    def mean(self) -> Tensor:
        """A: the mean of (a, 1)(a, 1)ᵀ, ``[G, I + 1, I + 1]`` or its diagonal; without a bias that of a aᵀ."""
        matrix, sums = self.matrix, self.sums
        count = self.count.clamp(min=1).view(-1, *[1] * (matrix.ndim - 1))
        if sums is None:
            return matrix.div_(count)
        groups, width = sums.shape
        mean = matrix.new_empty(groups, *[width + 1] * (matrix.ndim - 1))
        one = (self.count > 0).to(matrix.dtype)
        if matrix.ndim == 2:
            mean[:, :width] = matrix / count
            mean[:, width] = one
            return mean
        torch.div(matrix, count, out=mean[:, :width, :width])
        mean[:, :width, width] = mean[:, width, :width] = sums / count.squeeze(2)
        mean[:, width, width] = one
        return mean


def counted(positions: Tensor, averaged: bool) -> Tensor:
    """How many of ``[G, N, S]`` there are, or how many data have one, ``[G]``."""
    return positions.any(2).sum(1) if averaged else positions.sum((1, 2))
