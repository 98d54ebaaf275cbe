"""Sums of squares over a backward pass: diagonals and norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.finite import all_finite, finite_answer
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.structured import StructuredGradient
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.backward_pass import BackwardPass
from curvext.per_sample.small_uses import SmallUses
from curvext.processes import ALONE, Group
from curvext.space import ParameterSpace

#: a column of a root of H_ℓ, and its sign
_Column = tuple[Tensor, float]


class BlockSum:
    """A sum with one block for each parameter; the first summand is written or adopted, not added to zeros.

    Args:
        space: the parameters.
        flat: ``[P]``, contiguous, whose views are the blocks; it is overwritten. On the device "meta" it gives only
            their dtype: each block is then a separate tensor, the first summand itself if its layout is the
            parameter's.
    """

    def __init__(self, space: ParameterSpace, flat: Tensor) -> None:
        self._device = space.device
        self._blocks = space.blocks(flat)
        self._untouched = set(range(len(self._blocks)))

    @classmethod
    def apart(cls, parameters: Sequence[Tensor]) -> BlockSum:
        """A sum in separate blocks, at least float32, for parameters of several dtypes."""
        found = cls.__new__(cls)
        found._device = parameters[0].device
        found._blocks = [
            torch.empty(p.shape, dtype=dtype_of_sums(p.dtype), device="meta") for p in parameters
        ]
        found._untouched = set(range(len(parameters)))
        return found

    def add(
        self, parameter: int, part: Tensor, arrange: ViewChain | None = None, sign: float = 1.0
    ) -> None:
        """Adds ± ``part``, a new tensor, to a parameter's block in the arrangement of ``arrange``."""
        block = self._blocks[parameter]
        here = block if arrange is None else arrange(block)
        part = part.reshape(here.shape)
        first = parameter in self._untouched
        self._untouched.discard(parameter)
        whole = first and sign == 1 and here.numel() == block.numel()
        if block.is_meta:
            if whole and part.stride() == here.stride() and part.dtype == block.dtype:
                self._blocks[parameter] = part.as_strided(block.shape, block.stride())
                return
            block = self._blocks[parameter] = torch.empty_like(block, device=self._device)
            here = block if arrange is None else arrange(block)
        if whole:
            here.copy_(part)
            return
        if first:
            block.zero_()
        here.add_(part, alpha=sign)

    def blocks(self) -> list[Tensor]:
        """The sums by parameter; ends the summation."""
        for parameter in self._untouched:
            block = self._blocks[parameter]
            if block.is_meta:
                block = self._blocks[parameter] = torch.empty_like(block, device=self._device)
            block.zero_()
        self._untouched.clear()
        return self._blocks


class SquareSum:
    """Consumer: Σ_n Σ_k ± g_nk² by parameter, unnormalised.

    Args:
        space: the parameters.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self._space = space
        self._dtype = dtype_of_sums(space.dtype)
        self._sum = BlockSum(space, torch.empty(space.size, dtype=self._dtype, device="meta"))
        self._sign = 1.0
        #: (parameter, which of its uses) → the use and Σ_k ± g_k², while there are several columns
        self._separable: dict[tuple[int, int], _Separable] | None = None
        self._met: Counter[int] = Counter()
        self._small = SmallUses()
        #: parameter, arrangement and sign of each of them
        self._of_small: list[tuple[int, ViewChain, float]] = []

    def run(self, backward: BackwardPass, columns: Iterable[_Column]) -> None:
        """Adds ± (J_nᵀ s_nk)² for columns s_k with their signs, after which the pass is used up.

        One backward pass takes one column, or several where that is possible and their gradients take little memory.

        Where a sample has one position, (g aᵀ)² = g² (a²)ᵀ, so the squares of g are summed over the columns first
        and multiplied with a² once.
        """
        left = iter(columns)
        some = list(islice(left, 2))
        if len(some) == 2:
            left = self._together(backward, chain(some, left))
            some = list(islice(left, 2))
        left = chain(some, left)
        column = next(left, None)
        while column is not None:
            following = next(left, None)
            if following is not None and self._separable is None:
                self._separable = {}
            cotangent, self._sign = column
            self._met.clear()
            backward.run(self, cotangent, keep=following is not None)
            column = following
        for (parameter, _), at in (self._separable or {}).items():
            self._sum.add(parameter, at.use.with_squares(at.squares), at.arrange)
        self._separable = None
        self._add_small()

    def _add_small(self) -> None:
        """Adds the squares of the small uses, which one operation takes together."""
        if not len(self._small):
            return
        squares = self._small.together(self._dtype).square_().sum(0)
        parts = squares.split(self._small.sizes)
        for (parameter, arrange, sign), part in zip(self._of_small, parts, strict=True):
            self._sum.add(parameter, part.clone(), arrange, sign)
        self._small, self._of_small = SmallUses(), []

    def _together(self, backward: BackwardPass, left: Iterator[_Column]) -> Iterator[_Column]:
        """Takes several columns in each pass, as long as that is possible; returns the others."""
        passes = backward.several_vectors()
        most = 1 if passes is None else passes.most
        while most > 1 and passes is not None:
            some = list(islice(left, most))
            if len(some) < 2:
                return chain(some, left)
            by_sign = {sign: [column for column, its in some if its == sign] for _, sign in some}
            found = [(sign, passes.run(torch.stack(alike))) for sign, alike in by_sign.items()]
            if any(uses is None for _, uses in found):
                return chain(some, left)
            for sign, uses in found:
                for use in uses or ():
                    squares = use.use.square_of(use.vectors)
                    self._sum.add(use.parameter, squares, use.arrange, sign)
        return left

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Adds the squares of a use."""
        if self._small.takes(use):
            self._small.add(use)
            self._of_small.append((parameter, arrange, self._sign))
            if self._small.full:
                self._add_small()
            return
        if self._separable is None or not isinstance(use, OuterGradient) or use.a.shape[1] != 1:
            self._sum.add(parameter, use.square(), arrange, self._sign)
            return
        squares = use.g[:, 0].to(self._dtype).square()
        # all passes over one graph reach the uses of a parameter in the same order
        key = (parameter, self._met[parameter])
        self._met[parameter] += 1
        if key in self._separable:
            self._separable[key].squares.add_(squares, alpha=self._sign)
        else:
            self._separable[key] = _Separable(use, squares.mul_(self._sign), arrange)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Adds one sample's squares."""
        squares = gradient.to(self._dtype).square()
        self._sum.add(parameter, squares, sign=self._sign)

    def named(self, scale: float, dtype: torch.dtype, group: Group = ALONE) -> dict[str, Tensor]:
        """The sums over all ranks of ``group``, times ``scale``, by parameter, in ``dtype``; ends the summation."""
        blocks = self._sum.blocks()
        group.sum_all(blocks)
        torch._foreach_mul_(blocks, scale)
        if self._space.device.type == "cpu" and not all_finite(blocks):
            for name, block in zip(self._space.names, blocks, strict=True):
                finite_answer(block, f"diagonal: {name!r}")
        return dict(zip(self._space.names, (b.to(dtype) for b in blocks), strict=True))


@dataclass(frozen=True)
class _Separable:
    """A use with one position, its arrangement, and the squares of its g summed over columns, ``[N, O]``."""

    use: OuterGradient
    squares: Tensor
    arrange: ViewChain


class SquaredNorms:
    """Consumer: ‖g_n‖² by sample, unnormalised."""

    def __init__(self, samples: int, space: ParameterSpace) -> None:
        self._total = torch.zeros(samples, dtype=dtype_of_sums(space.dtype), device=space.device)
        self._small = SmallUses()

    @property
    def total(self) -> Tensor:
        """``[N]``."""
        self._add_small()
        return self._total

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Adds the norms of a use: rearranging does not change them."""
        if self._small.takes(use):
            self._small.add(use)
            if self._small.full:
                self._add_small()
        else:
            self._total += use.norm()

    def _add_small(self) -> None:
        if len(self._small):
            self._total += self._small.together(self._total.dtype).square_().sum(1)
            self._small = SmallUses()

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Adds one sample's norm."""
        self._total[sample] += gradient.to(self._total.dtype).square().sum()
