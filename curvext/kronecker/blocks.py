"""One block of a block-diagonal matrix: by its eigenvalues, dense or diagonal."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from curvext.kronecker.few_rows import Rows
from curvext.kronecker.forms import Form
from curvext.kronecker.spectral import Spectral, symmetric
from curvext.operators.linear import DENSE_LIMIT, LinearOperator


@dataclass(frozen=True)
class Factors:
    """The factors of a block.

    Attributes:
        a: A, ``[I, I]``, with the row and column of a joint bias last; ``[I]`` where it is diagonal; None for a block
            that is no Kronecker product. For Shampoo R. A grouped convolution has its groups in front.
        g: Γ, ``[O, O]`` or ``[O]`` likewise; for Shampoo L; the matrix or its diagonal for any other block.
    """

    a: Tensor | None
    g: Tensor
    #: those of A and Γ, where they are fewer than the side
    rows: tuple[Rows | None, Rows | None] = field(default=(None, None), repr=False, compare=False)

    def nbytes(self) -> int:
        """Bytes of all."""
        matrices = sum(t.numel() * t.element_size() for t in (self.a, self.g) if t is not None)
        return matrices + sum(rows.nbytes() for rows in self.rows if rows is not None)


@dataclass(frozen=True)
class Place:
    """The position of a block.

    Attributes:
        params: names of its parameters, in the order of the flat vector.
        slices: where each of them lies in the flat vector.
        dtype: of vectors; products are computed in that of the factors.
    """

    params: tuple[str, ...]
    slices: tuple[slice, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """The length of the block's vectors."""
        return sum(s.stop - s.start for s in self.slices)

    def of(self, rows: Tensor) -> Tensor:
        """The block's part of flat vectors ``[K, P]``, ``[K, n]``."""
        if len(self.slices) == 1:
            return rows[:, self.slices[0]]
        return torch.cat([rows[:, s] for s in self.slices], 1)

    def write(self, rows: Tensor, part: Tensor) -> None:
        """Writes the block's part to flat vectors ``[K, P]``."""
        start = 0
        for s in self.slices:
            width = s.stop - s.start
            rows[:, s] = part[:, start : start + width]
            start += width


class Block(LinearOperator):
    """A symmetric block; its vectors are its parameters one after the other.

    Attributes:
        params: names of its parameters.
        structure: "kronecker", "dense" or "diagonal".
        factors: its factors.
        why: the reason for this structure, in words.
    """

    def __init__(
        self, place: Place, form: Form, factors: Factors, structure: str, why: str = ""
    ) -> None:
        self.place = place
        self.form = form
        self.factors = factors
        self.structure = structure
        self.why = why
        self.params = place.params
        self.size = place.size
        self.dtype = place.dtype
        self.device = factors.g.device

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """The product with vectors ``[K, n]`` in the dtype of the factors."""

    @property
    @abstractmethod
    def spectral(self) -> Spectral:
        """Its eigenvalues and eigenvectors."""

    @abstractmethod
    def diagonal_in_sums(self) -> Tensor:
        """The diagonal ``[n]`` in the dtype of the factors."""

    @property
    def sums(self) -> torch.dtype:
        """The dtype of the factors, in which products are computed."""
        return self.factors.g.dtype

    def _columns(self, columns: list[Tensor]) -> Tensor:
        return self.apply(torch.stack(columns).to(self.sums)).to(self.dtype)

    def diagonal(self) -> Tensor:
        """The diagonal, ``[n]``, exact."""
        return self.diagonal_in_sums().to(self.dtype)

    def trace(self) -> Tensor:
        """The trace, exact."""
        return self.diagonal_in_sums().sum().to(self.dtype)

    def to_dense(self) -> Tensor:
        """The block as a matrix ``[n, n]``."""
        if self.size > DENSE_LIMIT:
            raise ValueError(
                f"to_dense: the block {self.params[0]!r} of {self.size} rows is over the limit of {DENSE_LIMIT}; "
                "use products"
            )
        eye = torch.eye(self.size, dtype=self.sums, device=self.device)
        return symmetric(self.apply(eye)).to(self.dtype)

    def nbytes(self) -> int:
        """Bytes that it holds, an eigenbasis included."""
        return 2 * self.factors.nbytes()

    def function(self, spectral: Spectral) -> SpectralBlock:
        """The block with other eigenvalues in its eigenbasis."""
        return SpectralBlock(self.place, self.form, None, spectral, self.structure, self.why)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.params)}: {self.structure}, n={self.size})"


class SpectralBlock(Block):
    """A block by its eigenvalues in a Kronecker eigenbasis: EKFAC, and functions of any block.

    Args:
        place, form, structure, why: see :class:`Block`.
        factors: None: its diagonal of eigenvalues stands for them.
        spectral: the eigenvalues and the basis.
    """

    def __init__(
        self,
        place: Place,
        form: Form,
        factors: Factors | None,
        spectral: Spectral,
        structure: str,
        why: str = "",
    ) -> None:
        self._spectral = spectral
        known = Factors(None, spectral.values) if factors is None else factors
        super().__init__(place, form, known, structure, why)

    @property
    def spectral(self) -> Spectral:
        return self._spectral

    def apply(self, x: Tensor) -> Tensor:
        return self.form.vectors(self._spectral.apply(self.form.matrices(x)))

    def diagonal_in_sums(self) -> Tensor:
        return self.form.vectors(self._spectral.diagonal().unsqueeze(0))[0]


class DenseBlock(Block):
    """A dense block.

    Args:
        place, why: see :class:`Block`.
        matrix: ``[n, n]``, symmetric.
        semidefinite: whether it is PSD but for rounding.
    """

    def __init__(self, place: Place, matrix: Tensor, semidefinite: bool, why: str = "") -> None:
        form = Form.vector(place.size)
        super().__init__(place, form, Factors(None, matrix), "dense", why)
        self.semidefinite = semidefinite

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.factors.g

    @cached_property
    def spectral(self) -> Spectral:
        values, vectors = torch.linalg.eigh(self.factors.g.double())
        if self.semidefinite:
            values = values.clamp(min=0)
        dtype = self.sums
        return Spectral(vectors.to(dtype).contiguous()[None], None, values.to(dtype).view(1, -1, 1))

    def diagonal_in_sums(self) -> Tensor:
        return self.factors.g.diagonal()


class DiagonalBlock(Block):
    """A diagonal block: zero, or the exact diagonal of one too large to be formed.

    Args:
        place, why: see :class:`Block`.
        values: ``[n]``.
    """

    def __init__(self, place: Place, values: Tensor, why: str = "") -> None:
        super().__init__(place, Form.vector(place.size), Factors(None, values), "diagonal", why)

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factors.g

    @property
    def spectral(self) -> Spectral:
        return Spectral(None, None, self.factors.g.view(1, -1, 1))

    def diagonal_in_sums(self) -> Tensor:
        return self.factors.g
