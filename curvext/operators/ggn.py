"""The generalized Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvext.losses import LossPoint
from curvext.operators.curvature import Blocks, CurvatureOperator
from curvext.per_sample.reductions import SquareSum
from curvext.problem import Pass
from curvext.processes import collective
from curvext.products.linearisation import Linearised


class GGNOperator(CurvatureOperator):
    """The generalized Gauss-Newton matrix G = Jᵀ H_ℓ J, J = ∂f/∂θ (Schraudolph 2002).

    The Hessian of the loss of the *linearised* network. Positive semidefinite for a convex ℓ. For
    softmax cross-entropy it equals the true Fisher matrix (Martens 2020, section 9), for squared error
    that of a Gaussian with −log p = ℓ. It is not the empirical Fisher: G does not depend on how well
    the labels are met except through the outputs, F_emp is made of the gradients themselves.

    One product is J v, H_ℓ by the kernel for all columns at once, and Jᵀ u, on the kept graph.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> cx.GGNOperator(model, loss, data) @ torch.tensor([1.0, 2.0])
        tensor([1., 2.])
    """

    def _batches(self) -> Pass[Linearised]:
        return self._problem.ggn_batches()

    def _product(self, at: Linearised, columns: list[Blocks]) -> Iterator[Blocks]:
        return at.ggn_mm(columns)

    @collective
    def diagonal(self) -> Tensor:
        """diag G, ``[P]``, exact: Σ_n Σ_k ± (Jᵀ s_k)² over the columns of a root of H_ℓ.

        One backward pass for each output of a sample: C for a classifier, C·T with T positions.

        Raises:
            ValueError: a custom loss couples the samples of a batch, or a sample has too many outputs for one.
        """
        return self.flatten(self.named_diagonal())

    @collective
    def named_diagonal(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The same by parameter, without the flat vector; in ``dtype``, or that of the operator."""

        with self._problem.call(self._saying(".diagonal")) as rounds:
            for _ in rounds:
                squares = SquareSum(self._problem.space)
                with self._problem.backward_passes() as batches:
                    for backward, point in batches:
                        squares.run(backward, self._root_columns(point))
        return squares.named(self._problem.mean_scale(), dtype or self.dtype, self.group)

    def _root_columns(self, point: LossPoint) -> Iterator[tuple[Tensor, float]]:
        return point.root_columns()

    @collective
    def trace(self) -> Tensor:
        """tr G, exact, at the cost of :meth:`diagonal`."""
        return self.diagonal().sum()
