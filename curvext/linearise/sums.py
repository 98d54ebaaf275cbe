"""Visitors of a tape that sum squares: diagonals and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.linearise.selections import Arrangement
from curvext.linearise.uses import Use
from curvext.space import ParameterSpace, dtype_of_sums


class BlockSum:
    """A flat vector ``[P]`` that is added to block by block; what comes first is written, not added to zeros.

    Args:
        space: the parameters.
        dtype: of the sum.
    """

    def __init__(self, space: ParameterSpace, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):  # it is added to where that is off
            self._flat = torch.empty(space.size, dtype=dtype, device=space.device)
            self._blocks = space.blocks(self._flat)
        self._untouched = set(range(len(self._blocks)))

    def add(
        self, parameter: int, part: Tensor, arrange: Arrangement | None = None, sign: float = 1.0
    ) -> None:
        """Adds ± ``part`` to a parameter's block, where ``arrange`` shows its elements to lie."""
        block = self._blocks[parameter]
        here = block if arrange is None else arrange(block)
        part = part.reshape(here.shape)
        first = parameter in self._untouched
        self._untouched.discard(parameter)
        if first and sign == 1 and here.numel() == block.numel():
            here.copy_(part)
            return
        if first:
            block.zero_()
        here.add_(part, alpha=sign)

    def flat(self) -> Tensor:
        """The sum, ``[P]``; ends the summation."""
        for parameter in self._untouched:
            self._blocks[parameter].zero_()
        self._untouched.clear()
        return self._flat


class SquareSum:
    """Visitor: ± Σ_n g_n² by parameter, unnormalised.

    Args:
        space: the parameters.
    """

    #: +1 adds what comes, −1 subtracts it
    sign: float = 1.0

    def __init__(self, space: ParameterSpace) -> None:
        self._dtype = space.dtype
        self._sum = BlockSum(space, dtype_of_sums(space.dtype))

    def use(self, parameter: int, use: Use, arrange: Arrangement) -> None:
        """Adds the squares of a use."""
        self._sum.add(parameter, use.square(), arrange, self.sign)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Adds one sample's squares."""
        squares = gradient.to(dtype_of_sums(self._dtype)).square()
        self._sum.add(parameter, squares, sign=self.sign)

    def flat(self, scale: float) -> Tensor:
        """The sums times ``scale`` as a flat vector ``[P]``; ends the summation."""
        return self._sum.flat().mul_(scale).to(self._dtype)


class SquaredNorms:
    """Visitor: ‖g_n‖² by sample, unnormalised."""

    def __init__(self, samples: int, space: ParameterSpace) -> None:
        self.total = torch.zeros(samples, dtype=dtype_of_sums(space.dtype), device=space.device)

    def use(self, parameter: int, use: Use, arrange: Arrangement) -> None:
        """Adds the norms of a use: rearranging does not change them."""
        self.total += use.norm()

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Adds one sample's norm."""
        self.total[sample] += gradient.to(self.total.dtype).square().sum()
