"""The consumer of a training step: norms, squares and weighted sums of per-sample gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.gradients.structured import StructuredGradient
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.reductions import BlockSum
from curvext.training.hook_check import OneSample


class StepSums:
    """Consumer of a backward pass: ‖g_n‖², Σ_n g_n² and Σ_n w_n g_n, each if it is asked for.

    With known weights each use is freed at once. Otherwise uses are held until the weights are known.

    Args:
        parameters: the leaves.
        samples: N.
        norms, squares: whether they are asked for.
        weights: ``[N]``; None if they are a function of the norms.
        check: receives one sample's gradient to compare, if needed.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        samples: int,
        norms: bool,
        squares: bool,
        weights: Tensor | None,
        check: OneSample | None = None,
    ) -> None:
        self._parameters = parameters
        self._weights = weights
        self._check = check
        self._held: list[tuple[int, StructuredGradient, ViewChain]] = []
        self._sums = BlockSum.apart(parameters)
        self._squares = BlockSum.apart(parameters) if squares else None
        #: parameters whose gradients were materialised before the weights were known: they are not held
        self.written: set[int] = set()
        #: parameters that got a sum
        self.summed: set[int] = set()
        widest = max((dtype_of_sums(p.dtype) for p in parameters), key=lambda d: d.itemsize)
        device = parameters[0].device
        self._norms = torch.zeros(samples, dtype=widest, device=device) if norms else None

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Receives a use."""
        if self._check is not None:
            self._check.use(parameter, use, arrange)
        if self._norms is not None:
            self._norms += use.norm()
        if self._squares is not None:
            self._squares.add(parameter, use.square(), arrange)
        if self._weights is None:
            self._held.append((parameter, use, arrange))
        else:
            self._sum(parameter, use, arrange, self._weights)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Receives one sample's materialised gradient."""
        (self.written if self._weights is None else self.summed).add(parameter)
        if self._check is not None:
            self._check.gradient(parameter, sample, gradient)
        squares = gradient.to(dtype_of_sums(gradient.dtype)).square()
        if self._weights is not None:
            self._sums.add(parameter, gradient * self._weights[sample].to(squares.dtype))
        if self._norms is not None:
            self._norms[sample] += squares.sum()
        if self._squares is not None:
            self._squares.add(parameter, squares)

    def weigh(self, weights: Tensor) -> None:
        """Sums the held uses, freeing each one."""
        self._held.reverse()
        while self._held:
            self._sum(*self._held.pop(), weights)

    def norms(self) -> Tensor:
        """‖g_n‖, ``[N]``."""
        assert self._norms is not None
        return self._norms.sqrt()

    def squares(self) -> list[Tensor]:
        """Σ_n g_n² by parameter, zeros for parameters without gradient."""
        assert self._squares is not None
        return self._squares.blocks()

    def sums(self) -> list[Tensor]:
        """Σ_n w_n g_n by parameter, for gradients that came as uses."""
        return self._sums.blocks()

    def _sum(
        self, parameter: int, use: StructuredGradient, arrange: ViewChain, weights: Tensor
    ) -> None:
        self.summed.add(parameter)
        column = weights.to(dtype_of_sums(self._parameters[parameter].dtype)).unsqueeze(0)
        self._sums.add(parameter, use.weighted_sum(column)[0], arrange)
