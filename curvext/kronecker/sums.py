"""The sums of one weight: A and Γ, Shampoo's L and R, and Λ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvext.kronecker.blocks import Factors
from curvext.kronecker.few_rows import FewRows, Rows
from curvext.kronecker.kronecker_block import ungrouped
from curvext.kronecker.moments import InputMoment
from curvext.kronecker.pairs import Pairs
from curvext.kronecker.spectral import Spectral
from curvext.kronecker.tables import TablePairs

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self needs Python 3.11


class LayerSum(ABC):
    """Sums over pairs of one weight."""

    @abstractmethod
    def add(self, pairs: Pairs, last: bool) -> None:
        """The pairs along one vector of a batch; whether it is the batch's last."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The sums themselves, which may be added to those of other data."""

    @classmethod
    @abstractmethod
    def of(cls, tensors: list[Tensor]) -> Self:
        """Such sums of what :meth:`tensors` gave."""

    @abstractmethod
    def factors(self, scale: float) -> Factors:
        """The factors of M, whose scale it is; ends the summation."""


@dataclass(frozen=True)
class Sides:
    """Which sides of a weight are written out.

    Attributes:
        out, inner: whether Γ and A are matrices and not their diagonals.
    """

    out: bool
    inner: bool


class KFACSum(LayerSum):
    """A = (1/R) Σ a aᵀ and Γ = Σ g gᵀ, over positions ("expand") or over means and sums of them ("reduce").

    Args:
        sides: what is written out.
        reduce: whether the positions of a datum are put together.
        every: whether a position counts that no gradient reaches.
        alone: whether these data are all; rows of those of other processes are not at hand.
    """

    def __init__(self, sides: Sides, reduce: bool, every: bool, alone: bool = True) -> None:
        self._alone = alone
        self._sides = sides
        self._reduce = reduce
        self._every = every
        self._g: Tensor | None = None
        self._a: InputMoment | None = None
        self._positions: Tensor | None = None
        self._rows_of_g: FewRows | None = None
        self._rows_of_a: FewRows | None = None

    def add(self, pairs: Pairs, last: bool) -> None:
        """Adds g gᵀ; and a aᵀ with the last vector, when it is known which positions any of them reaches."""
        g = pairs.output_moment(self._sides.out, self._reduce)
        self._g = _added(self._g, g)
        if self._rows_of_g is None:
            self._rows_of_g = FewRows(g.shape[1] if self._few(self._sides.out, len(g)) else 0)
        if self._rows_of_g.want(pairs.count(self._reduce)):
            self._rows_of_g.add(pairs.output_rows(self._reduce))
        if not self._every:
            reached = pairs.reached()
            self._positions = reached if self._positions is None else self._positions | reached
        if not last:
            return
        positions = pairs.present() if self._every else self._positions
        assert positions is not None
        moment = pairs.input_moment(positions, self._sides.inner, self._reduce)
        if self._rows_of_a is None:
            self._rows_of_a = FewRows(
                moment.side if self._few(self._sides.inner, len(moment.count)) else 0
            )
        if self._rows_of_a.want(pairs.count(self._reduce)):
            self._rows_of_a.add(pairs.input_rows(positions, self._reduce))
        self._a = moment if self._a is None else self._a.add(moment)
        self._positions = None

    def _few(self, dense: bool, groups: int) -> bool:
        """Whether a side's eigenvectors may come of its rows."""
        return self._alone and dense and groups == 1

    def tensors(self) -> list[Tensor]:
        a, g = self._a, self._g
        assert a is not None and g is not None
        return [g, a.matrix, a.count, *([] if a.sums is None else [a.sums])]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> KFACSum:
        found = cls(Sides(True, True), False, False, alone=False)
        found._g, matrix, count, *sums = tensors
        found._a = InputMoment(matrix, sums[0] if sums else None, count)
        return found

    def factors(self, scale: float) -> Factors:
        """A and Γ, which carries the scale of M; ends the summation."""
        a, g, self._a, self._g = self._a, self._g, None, None
        assert a is not None and g is not None
        rows: tuple[Rows | None, Rows | None] = (None, None)
        if self._rows_of_a is not None and self._rows_of_g is not None:
            rows_of_a = self._rows_of_a.rows(1 / max(1, int(a.count[0])))
            rows = (rows_of_a, self._rows_of_g.rows(scale))
        return Factors(ungrouped(a.mean()), ungrouped(g.mul_(scale)), rows)


class ShampooSum(LayerSum):
    """L = Σ G Gᵀ and R = Σ Gᵀ G over data and vectors."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._left: Tensor | None = None
        self._right: Tensor | None = None

    def add(self, pairs: Pairs, last: bool) -> None:
        """Adds the sides of every datum's gradient."""
        left, right = pairs.sides(self._sides.out, self._sides.inner)
        self._left, self._right = _added(self._left, left), _added(self._right, right)

    def tensors(self) -> list[Tensor]:
        assert self._left is not None and self._right is not None
        return [self._left, self._right]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> ShampooSum:
        found = cls(Sides(True, True))
        found._left, found._right = tensors
        return found

    def factors(self, scale: float) -> Factors:
        """R and L, both of which carry the scale of M; ends the summation."""
        left, right, self._left, self._right = self._left, self._right, None, None
        assert left is not None and right is not None
        return Factors(ungrouped(right.mul_(scale)), ungrouped(left.mul_(scale)))


class EigenvalueSum:
    """Λ = Σ (Q_Γᵀ G Q_A)², by the squares of rotated pairs.

    Args:
        basis: Q_Γ and Q_A.
    """

    def __init__(self, basis: Spectral) -> None:
        self._basis = basis
        self._values: Tensor | None = None

    def add(self, pairs: Pairs, last: bool) -> None:
        """Adds the squares of every datum's rotated gradient."""
        self._values = _added(self._values, pairs.square(self._basis.out, self._basis.inner))

    @property
    def values(self) -> Tensor:
        """Λ, unscaled."""
        if self._values is None:
            self._values = torch.zeros_like(self._basis.values)
        self._values = self._values.to(self._basis.values)
        return self._values

    def spectral(self, scale: float) -> Spectral:
        """The basis with Λ."""
        return Spectral(self._basis.out, self._basis.inner, self.values * scale)


def sides_of(pairs: Pairs, fan_out: int, fan_in: int, max_dim: int, one_hot: bool) -> Sides:
    """Which sides are written out: those within ``max_dim``, but for a table's one-hot side where it is diagonal."""
    diagonal = one_hot and isinstance(pairs, TablePairs)
    return Sides(fan_out <= max_dim, fan_in <= max_dim and not diagonal)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)
