"""Small per-sample gradients, materialised: biases, scales, position embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from curvext.dtypes import alike, wide
from curvext.gradients.structured import OneTensorGradient


class DenseGradient(OneTensorGradient):
    """Small per-sample gradients, materialised: biases, scales, position embeddings.

    Args:
        gradients: ``[N, *D]``.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients

    def square(self) -> Tensor:
        return wide(self.gradients).square().sum(0)

    @property
    def pulled_back(self) -> Tensor:
        return self.gradients

    def square_of(self, several: Tensor) -> Tensor:
        return wide(several).square().sum((0, 1))

    def sample(self, n: int) -> Tensor:
        return self.gradients[n]

    def norm(self) -> Tensor:
        return wide(self.rows()).square().sum(1)

    def dot(self, W: Tensor) -> Tensor:
        rows, columns = alike(self.rows(), W.reshape(W.shape[0], -1))
        return rows @ columns.T

    def weighted_sum(self, c: Tensor) -> Tensor:
        weights, rows = alike(c, self.rows())
        return (weights @ rows).view(-1, *self.gradients.shape[1:])

    def rows(self) -> Tensor:
        return self.gradients.reshape(self.gradients.shape[0], -1)  # D may be that of a scalar

    def kept(self) -> Sequence[Tensor]:
        return (self.gradients,)
