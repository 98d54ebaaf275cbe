"""Exact blocks of M: Σ ± vec(G_n) vec(G_n)ᵀ, and the diagonal of blocks that are too large to be formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums, wide
from curvext.gradients.structured import StructuredGradient
from curvext.kronecker.forms import is_whole
from curvext.kronecker.moments import second_moment
from curvext.kronecker.spectral import symmetric
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.reductions import BlockSum
from curvext.processes import Group
from curvext.space import ParameterSpace


class ExactSum:
    """Sums exact blocks over one or several parameters during a backward pass.

    Args:
        space: the parameters.
        max_dim: a block with more rows keeps its diagonal.
    """

    def __init__(self, space: ParameterSpace, max_dim: int) -> None:
        self._space = space
        self._max_dim = max_dim
        self._dtype = dtype_of_sums(space.dtype)
        self._shapes = list(space.shapes.values())
        self._block_of: dict[int, tuple[int, ...]] = {}
        self._matrices: dict[tuple[int, ...], Tensor] = {}
        self._squares = BlockSum(space, torch.empty(space.size, dtype=self._dtype, device="meta"))
        self._diagonals: dict[tuple[int, ...], Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        self._complete: set[int] = set()
        self._samples = 0
        self._sign = 1.0

    def expect(self, block: tuple[int, ...]) -> None:
        """Registers the parameters of one block, by number, whose gradients will arrive."""
        self._block_of.update(dict.fromkeys(block, block))

    def expects(self, parameter: int) -> bool:
        """Whether a parameter is in a block."""
        return parameter in self._block_of

    @property
    def blocks(self) -> set[tuple[int, ...]]:
        """The blocks whose gradients were expected."""
        return set(self._block_of.values())

    def add_over(self, group: Group, blocks: Sequence[tuple[int, ...]]) -> None:
        """Adds up the blocks over the ranks of a group, in place; the same ``blocks`` on every rank."""
        for block in blocks:
            self.expect(block)
            if not self.is_dense(block):
                self._diagonals[block] = self.diagonal(block, 1.0)
            elif block not in self._matrices:
                size = sum(self._space.sizes[p] for p in block)
                device = self._space.device
                self._matrices[block] = torch.zeros(size, size, dtype=self._dtype, device=device)
        group.sum_all(
            [self._matrices[b] if self.is_dense(b) else self._diagonals[b] for b in blocks]
        )

    def is_dense(self, block: tuple[int, ...]) -> bool:
        """Whether a block is formed."""
        return sum(self._space.sizes[p] for p in block) <= self._max_dim

    def begin(self, samples: int, sign: float) -> None:
        """Begins a vector of a batch."""
        self._samples = samples
        self._sign = sign

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Receives a use."""
        block = self._block_of[parameter]
        if not self.is_dense(block):
            self._squares.add(parameter, wide(use.square()), arrange, self._sign)
            return
        shape = self._shapes[parameter]
        if is_whole(arrange, shape):
            self._rows[parameter] = wide(use.rows())
            self._complete.add(parameter)
            if self._complete.issuperset(block):
                self._add(block)
            return
        rows = self._buffer(parameter)
        index = arrange.image(shape).flatten().to(rows.device)
        rows[:, index] += use.rows().to(rows.dtype)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Receives one sample's gradient with respect to one parameter."""
        gradient = gradient.detach().to(self._dtype)
        if not self.is_dense(self._block_of[parameter]):
            self._squares.add(parameter, gradient.square(), sign=self._sign)
            return
        self._buffer(parameter)[sample] += gradient.reshape(-1)

    def _buffer(self, parameter: int) -> Tensor:
        if parameter not in self._rows:
            self._rows[parameter] = torch.zeros(
                self._samples,
                self._space.sizes[parameter],
                dtype=self._dtype,
                device=self._space.device,
            )
        return self._rows[parameter]

    def end(self) -> None:
        """Adds the blocks whose gradients have all arrived."""
        for block in dict.fromkeys(self._block_of[p] for p in list(self._rows)):
            self._add(block)

    def _add(self, block: tuple[int, ...]) -> None:
        rows = (
            torch.cat([self._buffer(p) for p in block], 1)
            if len(block) > 1
            else self._rows[block[0]]
        )
        part = second_moment(rows.to(self._dtype).unsqueeze(0), None, True)[0]
        if block in self._matrices:
            self._matrices[block].add_(part, alpha=self._sign)
        else:
            self._matrices[block] = part.mul_(self._sign)
        for p in block:
            self._rows.pop(p, None)
            self._complete.discard(p)

    def matrix(self, block: tuple[int, ...], scale: float) -> Tensor | None:
        """The block times ``scale``: ``[n, n]``, or None where no gradient arrived."""
        total = self._matrices.get(block)
        return None if total is None else symmetric(total * scale)

    def diagonal(self, block: tuple[int, ...], scale: float) -> Tensor:
        """The diagonal of a block that is not formed, ``[n]``, times ``scale``."""
        if block in self._diagonals:
            return self._diagonals[block] * scale
        blocks = self._squares.blocks()
        return torch.cat([blocks[p].reshape(-1) for p in block]) * scale
