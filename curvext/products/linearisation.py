"""Interfaces of one batch that is ready for products: with J and its transpose, with G, with second derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from curvext.losses import LossPoint


class Linearised(ABC):
    """One batch at fixed parameters, ready for products with G."""

    #: whether it outlives this pass; if not, the last product with its graph frees it on the way
    kept: bool = True

    def hold(self, kept: bool) -> None:
        """Says whether it outlives this pass."""
        self.kept = kept

    @abstractmethod
    def ggn_mm(self, columns: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """Jᵀ H_ℓ J v per parameter for each v, which has one tensor per parameter, one after the other.

        Nothing follows in this pass.
        """

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that keeping this costs."""


class Linearisation(Linearised):
    """One batch at fixed parameters, ready for products with J = ∂f/∂θ and its transpose.

    Args:
        point: the loss at f.
        first: index of the batch's first datum among all.
    """

    def __init__(self, point: LossPoint, first: int) -> None:
        self.point = point
        self.first = first

    @abstractmethod
    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        """J v in the shape of the output; ``v`` has one tensor per parameter."""

    @abstractmethod
    def vjp(self, u: Tensor, last: bool = False) -> list[Tensor]:
        """Jᵀ u per parameter; ``u`` has the shape of the output, ``last`` says that nothing follows in this pass."""

    @property
    def gradient(self) -> list[Tensor]:
        """∇ℓ per parameter, unnormalised, without graph; nothing follows in this pass."""
        return self.vjp(self.point.residual, last=True)

    def ggn_mm(self, columns: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        # one vector needs no copy: outputs are the largest tensors of a language model
        moved = [self.jvp(v) for v in columns]
        tangents = moved.pop().unsqueeze(0) if len(moved) == 1 else torch.stack(moved)
        outputs = list(self.point.hessian_mm(tangents))
        del moved, tangents
        for u in outputs:
            yield self.vjp(u, last=u is outputs[-1])


class SecondDerivatives(ABC):
    """One batch at fixed parameters, ready for products with second derivatives of its loss."""

    #: as in :class:`Linearised`
    kept: bool = True

    def hold(self, kept: bool) -> None:
        """Says whether it outlives this pass."""
        self.kept = kept

    @abstractmethod
    def hvp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        """∂²ℓ/∂θ² v per parameter: the kernel's part and the model's curvature in one pass."""

    @abstractmethod
    def model_curvature_vp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        """Σ_c r_c ∂²f_c/∂θ² v per parameter: the same pass with the residual held fixed."""
