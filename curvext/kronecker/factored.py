"""Functions of block-diagonal operators: solves, roots, spectra, draws, influence scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from curvext.arguments import as_choice, as_integer, as_number, as_seed
from curvext.dtypes import dtype_of_sums
from curvext.kronecker.block_matrix import BlockMatrix
from curvext.kronecker.blocks import Block
from curvext.kronecker.damping import Damping, check_positive, dampings_of, power_of
from curvext.kronecker.kronecker_block import KroneckerBlock
from curvext.kronecker.scores import influence_scores
from curvext.kronecker.spectrum import leading_pairs
from curvext.operators.forms import whole_vector
from curvext.operators.linear import Vector
from curvext.problem import Problem
from curvext.processes import collective
from curvext.results import EigenResult
from curvext.space import ParameterSpace


class BlockOperator(BlockMatrix):
    """A block-diagonal matrix with solves, roots, determinants, spectra, draws and influence scores."""

    #: of the family whose blocks are Γ ⊗ A, so that their sides can be damped one by one
    by_sides: ClassVar[bool] = False

    # ------------------------------------------------------------------ functions of the matrix

    @collective
    def solve(self, b: Vector, damping: Damping) -> Vector:
        """(B + λI)⁻¹ b, exactly, in the eigenbasis of each block.

        Args:
            b: flat ``[P]``, ``[P, K]`` or ``{name: tensor}``, or entries of each process; the answer has the same form
                and no graph.
            damping: λ > 0, in units of B: a number, or one for each block by the name of its first parameter.

        Raises:
            TypeError, ValueError: ``b`` or ``damping`` does not fit; or B + λI is singular.

        Cost: four products with the factors' eigenvectors for each block, after the eigendecompositions, which are made
        when first asked for and kept until the model changes.
        """
        right, back = whole_vector(self, b, "solve: b", 1, 2)
        rows = (right.detach().unsqueeze(1) if right.ndim == 1 else right.detach()).T
        if len(rows) == 0:
            return b.clone()  # type: ignore[attr-defined]  # a tensor: names have one column
        blocks = self._now(f"solve, damping={damping!r}", [right])
        inverse = self._powers("solve", blocks, damping, -1.0)
        answer = self.mapped(rows.to(dtype_of_sums(self.dtype)), inverse).to(self.dtype)
        whole = answer[0] if right.ndim == 1 else answer.T
        return cast(Vector, whole if back is None else back(whole))

    @collective
    def inverse(self, damping: Damping, method: str = "exact") -> KeptBlocks:
        """(B + λI)⁻¹ as an operator that does not follow later changes of the model.

        Args:
            damping: λ > 0, as :meth:`solve` takes it.
            method: "exact"; or "pi", for K-FAC: (Γ + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹ with
                π² = (tr A / dim A) / (tr Γ / dim Γ), which is not the inverse of B + λI but half the work to apply
                (Martens & Grosse 2015, section 6.3). Blocks that are no Kronecker product are damped exactly.

        Raises:
            TypeError, ValueError: ``damping`` does not fit, or "pi" is asked of another family.
        """
        if as_choice("inverse: method", method, ("exact", "pi")) == "exact":
            return self.power(-1.0, damping)
        if not self.by_sides:
            raise ValueError(
                f"inverse: method: 'pi' damps Γ and A one by one, which {type(self).__name__} is not made of; it is "
                "for KFACOperator; use method='exact'"
            )
        blocks = self._now(f"inverse, damping={damping!r}, by sides")
        dampings = dampings_of("inverse", blocks, damping)
        damped: list[Block] = [
            block.damped_by_sides(value)
            if isinstance(block, KroneckerBlock)
            else power_of("inverse", block, value, -1.0)
            for block, value in zip(blocks, dampings, strict=True)
        ]
        return self._kept(damped)

    @collective
    def power(self, p: float, damping: Damping) -> KeptBlocks:
        """(B + λI)^p as an operator that does not follow the model: p = −1 is the inverse, −0.5 its root.

        Args:
            p: any real number.
            damping: λ > 0, as :meth:`solve` takes it.

        Raises:
            TypeError, ValueError: an argument does not fit, or B + λI has an eigenvalue without such a power.
        """
        p = as_number("power: p", p, "a finite number")
        blocks = self._now(f"power, p={p!r}, damping={damping!r}")
        return self._kept(self._powers("power", blocks, damping, p))

    def _kept(self, blocks: list[Block]) -> KeptBlocks:
        """An operator of the same vectors with other blocks."""
        kept = KeptBlocks(self.space, blocks, self.dtype)
        if self.local_vectors is not None:
            kept.group, kept.local_vectors = self.group, self.local_vectors
        return kept

    def _powers(
        self, where: str, blocks: Sequence[Block], damping: Damping, p: float
    ) -> list[Block]:
        dampings = dampings_of(where, blocks, damping)
        return [power_of(where, b, value, p) for b, value in zip(blocks, dampings, strict=True)]

    @collective
    def logdet(self, damping: Damping) -> Tensor:
        """log det (B + λI), a scalar tensor.

        Raises:
            TypeError, ValueError: ``damping`` does not fit, or B + λI is not positive definite.
        """
        blocks = self._now(f"logdet, damping={damping!r}")
        parts = []
        for block, value in zip(blocks, dampings_of("logdet", blocks, damping), strict=True):
            values = block.spectral.eigenvalues + value
            check_positive("logdet", block, values)
            parts.append(values.double().log().sum())
        return torch.stack(parts).sum().to(self.dtype)

    # ------------------------------------------------------------------ spectrum

    @collective
    def eigenvalues(self) -> Tensor:
        """All eigenvalues, ascending, ``[P]``."""
        values = torch.cat([block.spectral.eigenvalues for block in self._now("eigenvalues")])
        return values.sort().values.to(self.dtype)

    @collective
    def eigh(self, k: int) -> EigenResult:
        """The ``k`` leading eigenpairs.

        Raises:
            ValueError: ``k`` is not within 1..P.
        """
        k = as_integer("eigh: k", k, 1, self.size, why="P")
        return leading_pairs(self, self._now(f"eigh, k={k}"), k)

    # ------------------------------------------------------------------ influence

    def _own_problem(self) -> Problem | None:
        """The risk it was made of, if it has one."""
        return None

    @collective
    def scores(
        self, query: Any, damping: Damping, train: Any = None, progress: bool = False
    ) -> Tensor:
        """Influence scores ⟨g_q, (B + λI)⁻¹ g_n⟩ of training data n on query data q, ``[Q, N]``.

        Positive where a step on n lowers the loss of q. Queries' gradients are made and preconditioned once, a chunk at
        a time, and multiplied with the recorded pairs of the data; no gradient of a training datum is formed.

        Args:
            query: data, of the operator's model and loss, or a risk of the same parameters.
            damping: λ > 0, as :meth:`solve` takes it.
            train: likewise; None for the operator's own data.
            progress: show a bar over queries (needs tqdm).

        Returns:
            Rows in the order of the query, columns in that of the training data, in :attr:`dtype`; each g in the units
            of its risk, that of :meth:`curvext.EmpiricalFisherOperator.products`.

        Raises:
            TypeError, ValueError: an argument does not fit; None stands for data that the operator does not have; or
                query, training data and operator are of different process groups.

        Cost:
            For each chunk of queries a pass over them and a product with the training records (a backward pass for each
            batch where they are not kept); in memory 32 M elements of queries' gradients, or one gradient, twice. Over
            several processes the gradients of a chunk are sent to all of them.
        """
        inverse = self.power(-1.0, damping)
        return influence_scores(inverse, self._own_problem(), query, train, progress)

    # ------------------------------------------------------------------ draws

    @collective
    def sample(self, count: int, damping: Damping, seed: int = 0) -> Tensor:
        """Draws from N(0, (B + λI)⁻¹), ``[P, count]``: the Laplace posterior about the parameters.

        Args:
            count: how many.
            damping: λ > 0, as :meth:`solve` takes it.
            seed: of the draws, which are the same for every call and device.

        Raises:
            TypeError, ValueError: an argument does not fit, or B + λI is not positive definite.
        """
        count = as_integer("sample: count", count, 0)
        generator = torch.Generator("cpu").manual_seed(as_seed("sample: seed", seed))
        noise = torch.randn(
            self.size, count, generator=generator, dtype=torch.float64, device="cpu"
        )
        if count == 0:
            return noise.to(self.device, self.dtype)
        rows = noise.T.to(self.device, dtype_of_sums(self.dtype))
        blocks = self._now(f"sample, count={count}, damping={damping!r}, seed={seed!r}")
        root = self._powers("sample", blocks, damping, -0.5)
        return self.mapped(rows, root).T.to(self.dtype)


class KeptBlocks(BlockOperator):
    """A block-diagonal operator that does not follow later changes of the model, as operators return it.

    Args:
        space: the parameters.
        blocks: one for each part of them.
        dtype: of vectors.
        by_sides: whether they are K-FAC's.
    """

    def __init__(
        self,
        space: ParameterSpace,
        blocks: Sequence[Block],
        dtype: torch.dtype,
        by_sides: bool = False,
    ) -> None:
        self._take_space(space, dtype)
        self._blocks = list(blocks)
        self.by_sides = by_sides  # type: ignore[misc]  # of an instance here

    def _now(self, what: str, vectors: Sequence[Tensor] = ()) -> Sequence[Block]:
        return self._blocks

    def __repr__(self) -> str:
        return f"{type(self).__name__}(P={self.size}, {len(self._blocks)} blocks, {self.dtype})"
