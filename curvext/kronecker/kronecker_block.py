"""A block that is a Kronecker product of two sides."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from curvext.kronecker.blocks import Block, Factors, Place
from curvext.kronecker.forms import Form
from curvext.kronecker.spectral import Spectral, eigenbasis


class KroneckerBlock(Block):
    """Γ ⊗ A, one for each group of a convolution.

    Args:
        place, form, factors, why: see :class:`Block`.
        divisor: ``[G]``, what the product is divided by; None for one.
    """

    def __init__(
        self,
        place: Place,
        form: Form,
        factors: Factors,
        why: str = "",
        divisor: Tensor | None = None,
    ) -> None:
        super().__init__(place, form, factors, "kronecker", why)
        assert factors.a is not None
        self.divisor = divisor
        g, a = grouped(factors.g, form.groups), grouped(factors.a, form.groups)
        if divisor is not None:
            # 0/0 is the zero block of a layer that no gradient reaches
            share = torch.where(divisor > 0, 1 / divisor, 0)
            g = g * share.view(-1, *[1] * (g.ndim - 1))
        self.g, self.a = g, a

    def apply(self, x: Tensor) -> Tensor:
        matrices = _left(self.g, self.form.matrices(x))
        return self.form.vectors(_right(matrices, self.a))

    @cached_property
    def spectral(self) -> Spectral:
        (out_values, out), (in_values, inner) = self._side(False), self._side(True)
        return Spectral(out, inner, out_values.unsqueeze(2) * in_values.unsqueeze(1))

    def _side(self, inner: bool) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues and eigenvectors of a side."""
        side, rows = (self.a if inner else self.g), self.factors.rows[0 if inner else 1]
        return eigenbasis(side, side.ndim == 3, rows if self.divisor is None else None)

    def diagonal_in_sums(self) -> Tensor:
        g, a = _diagonal(self.g), _diagonal(self.a)
        return self.form.vectors((g.unsqueeze(2) * a.unsqueeze(1)).unsqueeze(0))[0]

    def damped_by_sides(self, damping: float) -> KroneckerBlock:
        """(Γ + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹ with π² = (tr A / dim A) / (tr Γ / dim Γ); I/λ for a group that is zero."""
        mean_out, mean_in = _diagonal(self.g).mean(1), _diagonal(self.a).mean(1)
        zero = (mean_out <= 0) | (mean_in <= 0)
        ratio = torch.where(zero, 1.0, (mean_in / mean_out).sqrt())
        root = damping**0.5
        g = _inverse(self.g, *self._side(False), root / ratio, zero, 1 / damping)
        a = _inverse(self.a, *self._side(True), root * ratio, zero, 1.0)
        factors = Factors(ungrouped(a), ungrouped(g))
        return KroneckerBlock(self.place, self.form, factors, self.why)


def grouped(side: Tensor, groups: int) -> Tensor:
    """A side of a block with its groups in front, also where there is one."""
    return side.unsqueeze(0) if groups == 1 else side


def ungrouped(side: Tensor) -> Tensor:
    """The inverse of :func:`grouped`."""
    return side[0] if len(side) == 1 else side


def _left(side: Tensor, x: Tensor) -> Tensor:
    return side @ x if side.ndim == 3 else side.unsqueeze(2) * x


def _right(x: Tensor, side: Tensor) -> Tensor:
    return x @ side if side.ndim == 3 else x * side.unsqueeze(1)


def _diagonal(side: Tensor) -> Tensor:
    return side.diagonal(dim1=1, dim2=2) if side.ndim == 3 else side


def _inverse(
    side: Tensor,
    values: Tensor,
    vectors: Tensor | None,
    damping: Tensor,
    zero: Tensor,
    instead: float,
) -> Tensor:
    """(side + damping I)⁻¹ of each group, and ``instead`` times I where it is zero, by the side's eigenbasis."""
    rest = torch.where(zero, instead, 1 / damping).unsqueeze(1)
    inverse = torch.where(zero.unsqueeze(1), instead, 1 / (values + damping.unsqueeze(1)))
    if vectors is None:
        return inverse
    inside = (vectors * (inverse - rest).unsqueeze(1)) @ vectors.mT
    return inside.add_(torch.diag_embed(rest.expand(-1, side.shape[1])))
