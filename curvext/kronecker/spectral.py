"""A symmetric matrix by its Kronecker eigenbasis: every function of it is a function of its eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectral:
    """(Q_Γ ⊗ Q_A) diag Λ (Q_Γ ⊗ Q_A)ᵀ for each of G groups.

    Attributes:
        out: Q_Γ ``[G, O, O]``, or None for the axes.
        inner: Q_A ``[G, I, I]``, or None for the axes.
        values: Λ ``[G, O, I]``.
    """

    out: Tensor | None
    inner: Tensor | None
    values: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Spectral:
        """The same function of every eigenvalue."""
        return Spectral(self.out, self.inner, f(self.values))

    def apply(self, x: Tensor) -> Tensor:
        """The product with matrices ``[K, G, O, I]``."""
        return self.back(self.rotated(x) * self.values)

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
        x = self.values if self.out is None else self.out.square() @ self.values
        return x if self.inner is None else x @ self.inner.square().mT


def eigenbasis(side: Tensor, dense: bool) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues ``[G, d]`` and eigenvectors ``[G, d, d]`` of a side, PSD but for rounding; a diagonal has the axes.

    Computed in float64, since (B + λI)⁻¹ multiplies the rounding of small eigenvalues by 1/λ.
    """
    if not dense:
        return side.clamp(min=0), None
    values, vectors = torch.linalg.eigh(side.double())
    return values.clamp_(min=0).to(side.dtype), vectors.to(side.dtype).contiguous()


def symmetric(t: Tensor) -> Tensor:
    """A sum of outer products with the upper triangle mirrored, so that it is symmetric to the last bit."""
    return torch.triu(t) + torch.triu(t, 1).mT
