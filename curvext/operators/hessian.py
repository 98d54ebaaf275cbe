"""The Hessian, and its model-curvature term."""

from __future__ import annotations

from collections.abc import Iterator

from curvext.operators.curvature import Blocks, CurvatureOperator
from curvext.problem import Pass
from curvext.products.linearisation import SecondDerivatives


class HessianOperator(CurvatureOperator):
    """The Hessian H = ∂²L/∂θ² = Jᵀ H_ℓ J + Σ_c (∂ℓ/∂f_c) ∂²f_c/∂θ² = G + R.

    H is the P×P matrix of second derivatives of the risk by the *parameters*, not the C×C output
    Hessian H_ℓ. It can be indefinite, also for a convex loss, because R is. Where the residuals
    vanish H = G; at a minimum of a well-specified model with enough data H ≈ G = F.

    Do not solve with H as if it were positive definite: far from a minimum a Newton step along negative
    curvature goes uphill. Use :class:`GGNOperator` there.

    One product is one backward pass through the kept gradient graph: its H_ℓ part comes from the
    kernel, its model-curvature part from autograd (Pearlmutter 1994).

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> cx.HessianOperator(model, loss, data) @ torch.tensor([1.0, 2.0])
        tensor([1., 2.])
    """

    def _batches(self) -> Pass[SecondDerivatives]:
        return self._problem.second_derivatives()

    def _product(self, at: SecondDerivatives, columns: list[Blocks]) -> Iterator[Blocks]:
        return (at.hvp(v, last=v is columns[-1]) for v in columns)


class ModelCurvatureOperator(CurvatureOperator):
    """The model-curvature term R = Σ_c (∂ℓ/∂f_c) ∂²f_c/∂θ² = H − G.

    The part of the Hessian that the Gauss-Newton approximation drops: residuals times the second
    derivatives of the network. It is indefinite and vanishes with the residuals, or where the
    network is linear in its parameters (last layer alone, say). Always by autograd.
    """

    def _batches(self) -> Pass[SecondDerivatives]:
        return self._problem.second_derivatives()

    def _product(self, at: SecondDerivatives, columns: list[Blocks]) -> Iterator[Blocks]:
        return (at.model_curvature_vp(v, last=v is columns[-1]) for v in columns)
