"""What every block-diagonal operator answers: products, solves, roots, spectra, draws."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from curvext.arguments import as_choice, as_integer, as_number, as_seed
from curvext.dtypes import dtype_of_sums
from curvext.kronecker.blocks import Block, Factors, KroneckerBlock
from curvext.kronecker.scores import influence_scores
from curvext.operators.linear import DENSE_LIMIT, LinearOperator, Vector
from curvext.problem import Problem
from curvext.results import EigenResult
from curvext.space import ParameterSpace

#: λ, or one for each block by its first parameter
Damping = float | Mapping[str, float]


class BlockOperator(LinearOperator):
    """A symmetric matrix B that is zero between blocks of parameters, each a Kronecker product, dense or diagonal."""

    #: of the family whose blocks are Γ ⊗ A, so that their sides can be damped one by one
    by_sides: ClassVar[bool] = False
    space: ParameterSpace
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _now(self) -> Sequence[Block]:
        """The blocks as they are now, in the order of their first parameters."""

    def _take_space(self, space: ParameterSpace, dtype: torch.dtype) -> None:
        self.space = space
        self.size = space.size
        self.dtype = dtype
        self.device = space.device

    # ------------------------------------------------------------------ what it is made of

    @property
    def blocks(self) -> dict[str, Block]:
        """The operator of each block by the name of its first parameter; values, which stay."""
        return {block.params[0]: block for block in self._now()}

    @property
    def factors(self) -> dict[str, Factors]:
        """What each block is made of, by the name of its first parameter; values, which stay."""
        return {block.params[0]: block.factors for block in self._now()}

    def explain(self) -> str:
        """Which parameters are Kronecker products, dense or diagonal, the sizes of their factors, and why."""
        blocks = self._now()
        lines = [f"{type(self).__name__}: P = {self.size} in {len(blocks)} blocks, {self.dtype}"]
        names = [", ".join(block.params) for block in blocks]
        width = max(len(name) for name in names)
        for name, block in zip(names, blocks, strict=True):
            lines.append(f"  {name:<{width}}  {_sizes(block):<28}  {block.why}".rstrip())
        return "\n".join(lines)

    # ------------------------------------------------------------------ products

    def _columns(self, columns: list[Tensor]) -> Tensor:
        rows = torch.stack([c.detach() for c in columns]).to(dtype_of_sums(self.dtype))
        return self._mapped(rows, self._now()).to(self.dtype)

    def _mapped(self, rows: Tensor, blocks: Sequence[Block]) -> Tensor:
        """B times flat vectors ``[K, P]``."""
        answer = torch.empty_like(rows)
        for block in blocks:
            block.place.write(answer, block.apply(block.place.of(rows)))
        return answer

    def to_dense(self) -> Tensor:
        """The matrix ``[P, P]``, block by block.

        Raises:
            ValueError: P is larger than 20,000.
        """
        if self.size > DENSE_LIMIT:
            raise ValueError(
                f"to_dense: P = {self.size} is over the limit of {DENSE_LIMIT}; use products, or the blocks' "
                "own to_dense"
            )
        dense = torch.zeros(self.size, self.size, dtype=self.dtype, device=self.device)
        for block in self._now():
            index = self._indices(block)
            dense[index.unsqueeze(1), index] = block.to_dense()
        return dense

    def _indices(self, block: Block) -> Tensor:
        parts = [torch.arange(s.start, s.stop, device=self.device) for s in block.place.slices]
        return torch.cat(parts)

    def diagonal(self) -> Tensor:
        """The diagonal, ``[P]``, exact."""
        row = torch.empty(1, self.size, dtype=dtype_of_sums(self.dtype), device=self.device)
        for block in self._now():
            block.place.write(row, block.diagonal_in_sums().unsqueeze(0))
        return row[0].to(self.dtype)

    def trace(self) -> Tensor:
        """The trace, exact."""
        return (
            torch.stack([block.diagonal_in_sums().sum() for block in self._now()])
            .sum()
            .to(self.dtype)
        )

    # ------------------------------------------------------------------ functions of the matrix

    def solve(self, b: Vector, damping: Damping) -> Vector:
        """(B + λI)⁻¹ b, exactly, in the eigenbasis of each block.

        Args:
            b: flat ``[P]``, ``[P, K]`` or ``{name: tensor}``; the answer has the same form and no graph.
            damping: λ > 0, in units of B: a number, or one for each block by the name of its first parameter.

        Raises:
            TypeError, ValueError: ``b`` or ``damping`` does not fit; or B + λI is singular.

        Cost: four products with the factors' eigenvectors for each block, after the eigendecompositions, which are made
        when first asked for and kept until the model changes.
        """
        if isinstance(b, Mapping):
            return cast(Vector, self.split(self.solve(self.flatten(b), damping)))
        self._check(b, "solve: b", 1, 2)
        rows = (b.detach().unsqueeze(1) if b.ndim == 1 else b.detach()).T
        if len(rows) == 0:
            return b.clone()
        blocks = self._now()
        inverse = self._powers("solve", blocks, damping, -1.0)
        answer = self._mapped(rows.to(dtype_of_sums(self.dtype)), inverse).to(self.dtype)
        return answer[0] if b.ndim == 1 else answer.T

    def inverse(self, damping: Damping, method: str = "exact") -> KeptBlocks:
        """(B + λI)⁻¹ as an operator, whose values stay whatever becomes of the model.

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
        blocks = self._now()
        dampings = _dampings("inverse", blocks, damping)
        damped: list[Block] = [
            block.damped_by_sides(value)
            if isinstance(block, KroneckerBlock)
            else _power("inverse", block, value, -1.0)
            for block, value in zip(blocks, dampings, strict=True)
        ]
        return KeptBlocks(self.space, damped, self.dtype)

    def power(self, p: float, damping: Damping) -> KeptBlocks:
        """(B + λI)^p as an operator, whose values stay: p = −1 is the inverse, −0.5 its root.

        Args:
            p: any real number.
            damping: λ > 0, as :meth:`solve` takes it.

        Raises:
            TypeError, ValueError: an argument does not fit, or B + λI has an eigenvalue without such a power.
        """
        p = as_number("power: p", p, "a finite number")
        return KeptBlocks(self.space, self._powers("power", self._now(), damping, p), self.dtype)

    def _powers(
        self, where: str, blocks: Sequence[Block], damping: Damping, p: float
    ) -> list[Block]:
        dampings = _dampings(where, blocks, damping)
        return [_power(where, b, value, p) for b, value in zip(blocks, dampings, strict=True)]

    def logdet(self, damping: Damping) -> Tensor:
        """log det (B + λI), a scalar tensor.

        Raises:
            TypeError, ValueError: ``damping`` does not fit, or B + λI is not positive definite.
        """
        blocks = self._now()
        parts = []
        for block, value in zip(blocks, _dampings("logdet", blocks, damping), strict=True):
            values = block.spectral.values + value
            _check_positive("logdet", block, values)
            parts.append(values.double().log().sum())
        return torch.stack(parts).sum().to(self.dtype)

    # ------------------------------------------------------------------ spectrum

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, ascending, ``[P]``."""
        values = torch.cat([block.spectral.values.flatten() for block in self._now()])
        return values.sort().values.to(self.dtype)

    def eigh(self, k: int) -> EigenResult:
        """The ``k`` leading eigenpairs.

        Raises:
            ValueError: ``k`` is not within 1..P.
        """
        k = as_integer("eigh: k", k, 1, self.size, why="P")
        blocks = self._now()
        values = torch.cat([block.spectral.values.flatten() for block in blocks])
        leading = values.topk(k).indices.flip(0)  # ascending
        vectors = torch.zeros(k, self.size, dtype=values.dtype, device=self.device)
        start = 0
        for block in blocks:
            inside = (leading >= start) & (leading < start + block.size)
            which = leading[inside] - start
            start += block.size
            if len(which):
                rows = torch.zeros(len(which), self.size, dtype=values.dtype, device=self.device)
                block.place.write(rows, _eigenvectors(block, which))
                vectors[inside] = rows
        residuals = (self._mapped(vectors, blocks) - vectors * values[leading].unsqueeze(1)).norm(
            dim=1
        )
        tolerance = 100 * torch.finfo(values.dtype).eps ** 0.5 * float(values[leading[-1]].abs())
        return EigenResult(
            values[leading].to(self.dtype),
            vectors.T.to(self.dtype),
            residuals.to(self.dtype),
            bool((residuals <= tolerance).all()),
            products=k,
        )

    # ------------------------------------------------------------------ influence

    def _own_problem(self) -> Problem | None:
        """The risk it was made of, if it has one."""
        return None

    def scores(self, query: Any, damping: Damping, train: Any = None) -> Tensor:
        """Influence scores ⟨g_q, (B + λI)⁻¹ g_n⟩ of training data n on query data q, ``[Q, N]``.

        Positive where a step on n lowers the loss of q. Queries' gradients are made and preconditioned once, a chunk at
        a time, and multiplied with the recorded pairs of the data; no gradient of a training datum is formed.

        Args:
            query: data, of the operator's model and loss, or a risk of the same parameters.
            damping: λ > 0, as :meth:`solve` takes it.
            train: likewise; None for the operator's own data.

        Returns:
            Rows in the order of the query, columns in that of the training data, in :attr:`dtype`; each g in the units
            of its risk, that of :meth:`curvext.EmpiricalFisherOperator.products`.

        Raises:
            TypeError, ValueError: an argument does not fit; or None stands for data that the operator does not have.

        Cost:
            For each chunk of queries a pass over them and a product with the training records (a backward pass for each
            batch where they are not kept); in memory 32 M elements of queries' gradients, or one gradient, twice.
        """
        inverse = self.power(-1.0, damping)
        return influence_scores(inverse, self._own_problem(), query, train)

    # ------------------------------------------------------------------ draws

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
        root = self._powers("sample", self._now(), damping, -0.5)
        return self._mapped(rows, root).T.to(self.dtype)


class KeptBlocks(BlockOperator):
    """Blocks that stay as they are, whatever becomes of the model: what operators return.

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

    def _now(self) -> Sequence[Block]:
        return self._blocks

    def __repr__(self) -> str:
        return f"{type(self).__name__}(P={self.size}, {len(self._blocks)} blocks, {self.dtype})"


def _sizes(block: Block) -> str:
    if block.structure != "kronecker" or block.factors.a is None:
        return f"{block.structure} {block.size}"
    form = block.form
    groups = f"{form.groups} groups of " if form.groups > 1 else ""
    g, a = block.factors.g, block.factors.a
    dims = 1 if form.groups == 1 else 2
    out, inner = (
        f"{n}{' (diagonal)' if side.ndim == dims else ''}"
        for n, side in ((form.fan_out, g), (form.fan_in, a))
    )
    return f"kronecker {groups}{out} x {inner}"


def _dampings(where: str, blocks: Sequence[Block], damping: Any) -> list[float]:
    """λ of each block."""

    def positive(name: str, value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise TypeError
            return as_number(name, value, "λ > 0, finite", lambda v: 0 < v < math.inf)
        except TypeError:
            raise ValueError(
                f"{name}: expected λ > 0, finite, or {{block: λ}}, got {value!r}"
            ) from None

    if not isinstance(damping, Mapping):
        return [positive(f"{where}: damping", damping)] * len(blocks)
    names = [block.params[0] for block in blocks]
    missing = [name for name in names if name not in damping]
    unknown = [name for name in damping if name not in names]
    if missing or unknown:
        raise ValueError(
            f"{where}: damping: expected one number for each of the {len(names)} blocks by the name of its first "
            f"parameter: missing {missing[:5]}, unknown {unknown[:5]}"
        )
    return [positive(f"{where}: damping[{name!r}]", damping[name]) for name in names]


def _power(where: str, block: Block, damping: float, p: float) -> Block:
    def of(values: Tensor) -> Tensor:
        damped = values + damping
        if p == -1:
            _check_regular(where, block, damped)
            return damped.reciprocal()
        if not p.is_integer() or p < 0:
            _check_positive(where, block, damped)
        return damped.pow(p)

    return block.function(block.spectral.map(of))


def _check_regular(where: str, block: Block, damped: Tensor) -> None:
    if float(damped.min()) > 0:
        return
    least, most = float(damped.abs().min()), float(damped.abs().max())
    if least <= torch.finfo(damped.dtype).eps * most:
        raise ValueError(
            f"{where}: damping: B + λI is singular to rounding in the block {block.params[0]!r} (eigenvalues of "
            f"magnitude {least:.1e} to {most:.1e}); raise damping"
        )


def _check_positive(where: str, block: Block, damped: Tensor) -> None:
    least = float(damped.min())
    if least <= 0:
        raise ValueError(
            f"{where}: damping: B + λI is not positive definite: the block {block.params[0]!r} has the eigenvalue "
            f"{least:.3g}; raise damping"
        )


def _eigenvectors(block: Block, which: Tensor) -> Tensor:
    """Eigenvectors ``[m, n]`` by their numbers among the block's eigenvalues."""
    spectral, form = block.spectral, block.form
    units = torch.zeros(len(which), block.size, dtype=block.sums, device=which.device)
    units[torch.arange(len(which), device=which.device), which] = 1
    rotated = units.view(-1, form.groups, form.fan_out, form.fan_in)
    return form.vectors(spectral.back(rotated))
