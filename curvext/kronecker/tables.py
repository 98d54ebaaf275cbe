"""The pairs of a look-up table, whose inputs are one-hot."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.dtypes import wide
from curvext.gradients.rows import RowsGradient
from curvext.kernels.outer_square import outer_square
from curvext.kronecker.moments import InputMoment, counted
from curvext.kronecker.pairs import Pairs


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

    def input_moment(self, positions: Tensor, dense: bool, averaged: bool) -> InputMoment:
        w = positions[0].to(wide(self.g).dtype)
        if averaged:
            share = w / w.sum(1, keepdim=True).clamp(min=1)
            # ā ā^T has share_s share_t at (index_s, index_t); its diagonal where the two are one row
            matrix = self._scattered(share.unsqueeze(2) * share.unsqueeze(1), dense)
        else:
            total = w.new_zeros(self._rows)
            total.index_put_((self._use.index.flatten(),), w.flatten(), accumulate=True)
            matrix = (total.diag() if dense else total).unsqueeze(0)
        return InputMoment(matrix, None, counted(positions, averaged))

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
            shape = torch.Size((self._rows, g.shape[2]))
            return RowsGradient(self._use.index, g, shape).square().mT.unsqueeze(0)
        return outer_square(inner[0][self._use.index], g.unsqueeze(0)).unsqueeze(0)

    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        g = wide(self._use.g)
        left = ((self._same(g.dtype) @ g).flatten(0, 1), g.flatten(0, 1))
        out = left[0].mT @ left[1] if dense_out else (left[0] * left[1]).sum(0)
        inner = self._scattered(g @ g.mT, True) if dense_in else None
        if inner is None:
            inner = self._use.square().sum(1).unsqueeze(0)
        return out.unsqueeze(0), inner
