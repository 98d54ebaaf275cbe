"""A block-diagonal matrix: its blocks, and products with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.kronecker.blocks import Block, Factors
from curvext.operators.linear import DENSE_LIMIT, LinearOperator
from curvext.processes import collective
from curvext.space import ParameterSpace


class BlockMatrix(LinearOperator):
    """A symmetric matrix B that is zero between blocks of parameters, each a Kronecker product, dense or diagonal."""

    space: ParameterSpace
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _now(self, what: str, vectors: Sequence[Tensor] = ()) -> Sequence[Block]:
        """The current blocks, in the order of their first parameters.

        ``what`` says what they are for, with its numbers, and ``vectors``: with several processes they are compared.
        """

    def _take_space(self, space: ParameterSpace, dtype: torch.dtype) -> None:
        self.space = space
        self.size = space.size
        self.dtype = dtype
        self.device = space.device

    # ------------------------------------------------------------------ what it is made of

    @property
    @collective
    def blocks(self) -> dict[str, Block]:
        """The operator of each block by the name of its first parameter; a value that does not follow the model."""
        return {block.params[0]: block for block in self._now("blocks")}

    @property
    @collective
    def factors(self) -> dict[str, Factors]:
        """The factors of each block, by the name of its first parameter; values that do not follow the model."""
        return {block.params[0]: block.factors for block in self._now("factors")}

    @collective
    def explain(self) -> str:
        """Which parameters are Kronecker products, dense or diagonal, the sizes of their factors, and why."""
        blocks = self._now("explain")
        lines = [f"{type(self).__name__}: P = {self.size} in {len(blocks)} blocks, {self.dtype}"]
        names = [", ".join(block.params) for block in blocks]
        width = max(len(name) for name in names)
        for name, block in zip(names, blocks, strict=True):
            lines.append(f"  {name:<{width}}  {_sizes(block):<28}  {block.why}".rstrip())
        return "\n".join(lines)

    # ------------------------------------------------------------------ products

    def _columns(self, columns: list[Tensor]) -> Tensor:
        rows = torch.stack([c.detach() for c in columns]).to(dtype_of_sums(self.dtype))
        return self.mapped(rows, self._now("@ v", columns)).to(self.dtype)

    def mapped(self, rows: Tensor, blocks: Sequence[Block]) -> Tensor:
        """B times flat vectors ``[K, P]``."""
        answer = torch.empty_like(rows)
        for block in blocks:
            block.place.write(answer, block.apply(block.place.of(rows)))
        return answer

    @collective
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
        for block in self._now("to_dense"):
            index = self._indices(block)
            dense[index.unsqueeze(1), index] = block.to_dense()
        return dense

    def _indices(self, block: Block) -> Tensor:
        parts = [torch.arange(s.start, s.stop, device=self.device) for s in block.place.slices]
        return torch.cat(parts)

    @collective
    def diagonal(self) -> Tensor:
        """The diagonal, ``[P]``, exact."""
        row = torch.empty(1, self.size, dtype=dtype_of_sums(self.dtype), device=self.device)
        for block in self._now("diagonal"):
            block.place.write(row, block.diagonal_in_sums().unsqueeze(0))
        return row[0].to(self.dtype)

    @collective
    def trace(self) -> Tensor:
        """The trace, exact."""
        return (
            torch.stack([block.diagonal_in_sums().sum() for block in self._now("trace")])
            .sum()
            .to(self.dtype)
        )


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
