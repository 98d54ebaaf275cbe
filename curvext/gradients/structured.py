"""The per-sample gradients of one use of one parameter in one batch, in a structured form.

Letters: N samples, S shared positions of a sample, I fan-in, O fan-out; D is the shape of the tensor
that was used. Every class offers squares, norms and products with vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from curvext.dtypes import wide


class StructuredGradient(ABC):
    """Per-sample gradients G_n, each of shape D, of one use.

    Its tensors may be in reduced precision, as under autocast, and vectors in a dtype of their own. Products are
    exact and accumulate in float32, or in float64 if an operand is float64.
    """

    @abstractmethod
    def square(self) -> Tensor:
        """Σ_n G_n², shape D."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """G_n, shape D."""

    @abstractmethod
    def norm(self) -> Tensor:
        """‖G_n‖², shape [N]."""

    @abstractmethod
    def dot(self, W: Tensor) -> Tensor:
        """⟨G_n, W_k⟩ for W [K, *D], shape [N, K]."""

    @abstractmethod
    def weighted_sum(self, c: Tensor) -> Tensor:
        """Σ_n c_kn G_n for c [K, N], shape [K, *D]."""

    @abstractmethod
    def rows(self) -> Tensor:
        """All G_n materialised, [N, numel D]."""

    def gram(self, other: StructuredGradient) -> Tensor:
        """⟨G_n, G'_m⟩ with the use of the same tensor in another batch, [N, N']."""
        return wide(self.rows()) @ wide(other.rows()).T

    def nbytes(self) -> int:
        """Bytes that this use holds."""
        return sum(t.numel() * t.element_size() for t in self.kept())

    @abstractmethod
    def kept(self) -> Sequence[Tensor]:
        """The tensors this use holds."""


class OneTensorGradient(StructuredGradient):
    """Gradients that are linear in one tensor, which alone depends on the vector that was pulled back."""

    @property
    @abstractmethod
    def pulled_back(self) -> Tensor | None:
        """That tensor; None where :meth:`square_of` does not take several of them."""

    @abstractmethod
    def square_of(self, several: Tensor) -> Tensor:
        """Σ_v Σ_n G_vn², shape D.

        Args:
            several: ``[V, ...]``, V tensors in the place of :attr:`pulled_back`.
        """
