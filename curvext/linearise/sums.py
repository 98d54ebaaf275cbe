"""Visitors of a tape that sum squares: diagonals and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.linearise.selections import Arrangement
from curvext.linearise.uses import Use
from curvext.space import ParameterSpace, dtype_of_sums


class SquareSum:
    """Visitor: ± Σ_n g_n² by parameter, unnormalised.

    Args:
        space: the parameters.
    """

    #: +1 adds what comes, −1 subtracts it
    sign: float = 1.0

    def __init__(self, space: ParameterSpace) -> None:
        self._space = space
        dtype = dtype_of_sums(space.dtype)
        with torch.inference_mode(False):  # they are added to where that is off
            self._flat = torch.empty(space.size, dtype=dtype, device=space.device)
            self._sums = space.blocks(self._flat)
        self._untouched = set(range(len(self._sums)))

    def use(self, parameter: int, use: Use, arrange: Arrangement) -> None:
        """Adds the squares of a use."""
        here = arrange(self._sums[parameter])
        self._add(parameter, here, use.square().reshape(here.shape))

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Adds one sample's squares."""
        total = self._sums[parameter]
        self._add(parameter, total, gradient.to(total.dtype).square())

    def _add(self, parameter: int, here: Tensor, squares: Tensor) -> None:
        """The first to come needs no zeros beneath it, if it covers the parameter."""
        first = parameter in self._untouched
        self._untouched.discard(parameter)
        if first and self.sign == 1 and here.numel() == self._sums[parameter].numel():
            here.copy_(squares)
            return
        if first:
            self._sums[parameter].zero_()
        here.add_(squares, alpha=self.sign)

    def flat(self, scale: float) -> Tensor:
        """The sums times ``scale`` as a flat vector ``[P]``; ends the summation."""
        for parameter in self._untouched:
            self._sums[parameter].zero_()
        self._untouched.clear()
        return self._flat.mul_(scale).to(self._space.dtype)


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
