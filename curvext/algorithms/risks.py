"""Protocols of a risk for the algorithms: :class:`curvext.EmpiricalRisk` meets all, and a user's object may."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from curvext.algorithms.products import SymmetricOperator


class HasGradient(Protocol):
    """L and its gradient."""

    def value(self, *, linearise: bool = False) -> float:
        """L."""
        ...

    def gradient(self) -> Tensor:
        """∇L, ``[P]``."""
        ...


class HasHessian(HasGradient, Protocol):
    """And its Hessian."""

    def hessian(self) -> SymmetricOperator:
        """H."""
        ...


class HasGGN(HasGradient, Protocol):
    """And its Gauss-Newton matrix."""

    def ggn(self) -> SymmetricOperator:
        """G."""
        ...


class Solvable(SymmetricOperator, Protocol):
    """An operator that solves damped systems by itself."""

    def solve(self, b: Tensor, damping: float = ...) -> Tensor:
        """(A + λI)⁻¹ b."""
        ...


class HasFisher(HasGradient, Protocol):
    """And the three Fisher matrices."""

    def fisher(self) -> SymmetricOperator:
        """F."""
        ...

    def mc_fisher(self, samples: int = ..., seed: int = ...) -> SymmetricOperator:
        """F with drawn labels."""
        ...

    def empirical_fisher(self) -> Solvable:
        """F_emp."""
        ...


class HasMatrices(HasHessian, HasGGN, HasFisher, Protocol):
    """All matrices."""


class HasSpace(Protocol):
    """The parameters: their ``size``, ``device`` and, with the parts of a flat vector, what is ``in_memory``."""

    @property
    def space(self) -> Any:
        """The parameters and their order."""
        ...


class Movable(HasGradient, HasSpace, Protocol):
    """Value and gradient wherever the parameters are moved to."""

    def flat_parameters(self) -> Tensor:
        """θ, ``[P]``."""
        ...
