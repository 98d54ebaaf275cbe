"""A symmetric matrix by its Kronecker eigenbasis: every function of it is a function of its eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvext.kronecker.few_rows import Rows


@dataclass(frozen=True)
class Spectral:
    """(Q_Γ ⊗ Q_A) diag Λ (Q_Γ ⊗ Q_A)ᵀ for each of G groups, and a multiple of the identity on the complement.

    A basis with fewer columns than rows spans the range of its factor. Outside both ranges the matrix is zero, and a
    function of it one number, so that the complement needs no basis.

    Attributes:
        out: Q_Γ ``[G, O, r]``, or None for the axes.
        inner: Q_A ``[G, I, s]``, or None for the axes.
        values: Λ ``[G, r, s]``.
        rest: the eigenvalue of all that is not in the range of both.
    """

    out: Tensor | None
    inner: Tensor | None
    values: Tensor
    rest: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether there is nothing outside the ranges."""
        return all(q is None or q.shape[1] == q.shape[2] for q in (self.out, self.inner))

    @property
    def size(self) -> int:
        """The length of a vector."""
        groups, rows, columns = self.values.shape
        rows = rows if self.out is None else self.out.shape[1]
        return groups * rows * (columns if self.inner is None else self.inner.shape[1])

    @property
    def eigenvalues(self) -> Tensor:
        """All of them, in no order."""
        values = self.values.flatten()
        return torch.cat([values, values.new_full((self.size - len(values),), self.rest)])

    def map(self, f: Callable[[Tensor], Tensor]) -> Spectral:
        """The same function of every eigenvalue."""
        if self.complete:
            return Spectral(self.out, self.inner, f(self.values))
        both = f(torch.cat([self.values.flatten(), self.values.new_tensor([self.rest])]))
        return Spectral(self.out, self.inner, both[:-1].view_as(self.values), rest=float(both[-1]))

    def apply(self, x: Tensor) -> Tensor:
        """The product with matrices ``[K, G, O, I]``."""
        if self.complete:
            return self.back(self.rotated(x) * self.values)
        inside = self.back(self.rotated(x) * (self.values - self.rest))
        return inside.add_(x, alpha=self.rest) if self.rest else inside

    def rotated(self, x: Tensor) -> Tensor:
        """Q_Γᵀ X Q_A."""
        x = x if self.out is None else self.out.mT @ x
        return x if self.inner is None else x @ self.inner

    def back(self, x: Tensor) -> Tensor:
        """Q_Γ X Q_Aᵀ."""
        x = x if self.out is None else self.out @ x
        return x if self.inner is None else x @ self.inner.mT

    def diagonal(self) -> Tensor:
        """The diagonal, ``[G, O, I]``."""
        x = self.values if self.complete else self.values - self.rest
        x = x if self.out is None else self.out.square() @ x
        x = x if self.inner is None else x @ self.inner.square().mT
        return x if self.complete else x + self.rest

    def completed(self) -> Spectral:
        """The same with a basis of all."""
        if self.complete:
            return self
        out, inner = _completed(self.out), _completed(self.inner)
        rows = self.values.shape[1] if out is None else out.shape[1]
        columns = self.values.shape[2] if inner is None else inner.shape[1]
        values = self.values.new_full((len(self.values), rows, columns), self.rest)
        values[:, : self.values.shape[1], : self.values.shape[2]] = self.values
        return Spectral(out, inner, values)


def eigenbasis(side: Tensor, dense: bool, rows: Rows | None = None) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues ``[G, r]`` and eigenvectors ``[G, d, r]`` of a side, PSD but for rounding; a diagonal has the axes.

    All d of them, or with ``rows``, of which the side is made, those that are not zero. Computed in float64, since
    (B + λI)⁻¹ multiplies the rounding of small eigenvalues by 1/λ.
    """
    if not dense:
        return side.clamp(min=0), None
    if rows is not None:
        return rows.eigenbasis(side.dtype)
    values, vectors = torch.linalg.eigh(side.double())
    return values.clamp_(min=0).to(side.dtype), vectors.to(side.dtype).contiguous()


def symmetric(t: Tensor) -> Tensor:
    """A sum of outer products with the upper triangle mirrored, so that it is symmetric to the last bit."""
    return torch.triu(t) + torch.triu(t, 1).mT


def _completed(basis: Tensor | None) -> Tensor | None:
    """An orthonormal basis of all that begins with these columns."""
    if basis is None or basis.shape[1] == basis.shape[2]:
        return basis
    whole, _ = torch.linalg.qr(basis.double(), mode="complete")
    return torch.cat([basis, whole[:, :, basis.shape[2] :].to(basis.dtype)], 2)
