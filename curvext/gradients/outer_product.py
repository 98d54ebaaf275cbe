"""The gradients of a matrix: sums of outer products, never formed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from curvext.dtypes import wide
from curvext.gradients.structured import OneTensorGradient, StructuredGradient
from curvext.kernels.outer_dot import outer_dot
from curvext.kernels.outer_gram import outer_gram
from curvext.kernels.outer_norm import outer_norm
from curvext.kernels.outer_square import outer_square
from curvext.kernels.outer_sum import outer_sum


class OuterGradient(OneTensorGradient):
    """G_n = Σ_s g_ns a_nsᵀ ∈ O×I, the per-sample gradient of a matrix or of its transpose.

    Args:
        a: ``[N, S, I]``.
        g: ``[N, S, O]``.
        transposed: whether D is (I, O): the parameter is the transpose of an O×I matrix.
    """

    def __init__(self, a: Tensor, g: Tensor, transposed: bool = False) -> None:
        self.a = a
        self.g = g
        self.transposed = transposed

    def turned(self) -> OuterGradient:
        """The gradients of the transpose."""
        return OuterGradient(self.a, self.g, not self.transposed)

    def _turned(self, x: Tensor) -> Tensor:
        return x.mT if self.transposed else x

    def square(self) -> Tensor:
        return self._turned(outer_square(self.a, self.g.unsqueeze(0)))

    @property
    def pulled_back(self) -> Tensor:
        return self.g

    def square_of(self, several: Tensor) -> Tensor:
        return self._turned(outer_square(self.a, several))

    def with_squares(self, squares: Tensor) -> Tensor:
        """Σ_n G_n², shape D, for one position in each sample and ``squares`` [N, O] in place of g²."""
        return self._turned(squares.mT @ wide(self.a[:, 0]).square())

    def sample(self, n: int) -> Tensor:
        return self._turned(wide(self.g[n]).mT @ wide(self.a[n]))

    def norm(self) -> Tensor:
        return outer_norm(self.a, self.g.unsqueeze(0))[0]

    def dot(self, W: Tensor) -> Tensor:
        # einsum puts a dimension of size 1 before the matrix
        W = W.reshape(W.shape[0], *W.shape[-2:])
        return outer_dot(self.a, self.g.unsqueeze(0), self._turned(W))[0]

    def weighted_sum(self, c: Tensor) -> Tensor:
        return self._turned(outer_sum(self.a, self.g.unsqueeze(0), c.unsqueeze(1)))

    def rows(self) -> Tensor:
        return self._turned(wide(self.g).mT @ wide(self.a)).flatten(1)

    def gram(self, other: StructuredGradient) -> Tensor:
        if not isinstance(other, OuterGradient) or other.transposed != self.transposed:
            return super().gram(other)
        return outer_gram(self.a, self.g, other.a, other.g)

    def kept(self) -> Sequence[Tensor]:
        return (self.a, self.g)
