"""Per-sample gradients of both sides, summed up: squared norms by sample and parameter, and squares."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from itertools import accumulate

import torch
from torch import Tensor

from curvext.check.plain import Plain
from curvext.gradients.structured import StructuredGradient
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.reductions import SquaredNorms
from curvext.problem import Problem
from curvext.processes import Saying
from curvext.space import ParameterSpace


class SampleSums:
    """The sums from plain PyTorch, for some samples.

    Args:
        plain: the risk.
        space: its parameters.
        numbers: which samples, in the order of the data.
        V: vectors ``[P, K]``.
    """

    def __init__(
        self, plain: Plain, space: ParameterSpace, numbers: Collection[int], V: Tensor
    ) -> None:
        rows = [V.new_empty(0, len(space.names), dtype=torch.float64)]
        V = V.double()
        #: Σ_n g_n² over these samples, ``[P]``
        self.squares = V.new_zeros(len(V))
        #: Σ_n g_n ⟨g_n, v⟩ likewise, ``[P, K]``
        self.products = torch.zeros_like(V)

        with plain.together(), closing(plain.sample_gradients(numbers)) as gradients:
            for gradient in gradients:
                squares = gradient.square()
                parts = [part.sum() for part in squares.split(space.sizes)]
                rows.append(torch.stack(parts).unsqueeze(0))
                self.squares.add_(squares)
                self.products.addr_(gradient, gradient @ V)
        plain.group.sum_all([self.squares, self.products])
        ends = list(accumulate(plain.shares))
        shares = [
            sum(end - share <= n < end for n in numbers)
            for end, share in zip(ends, plain.shares, strict=True)
        ]
        #: ‖g_n‖² by sample and parameter, ``[S, number of parameters]``
        self.by_parameter = plain.group.rows(torch.cat(rows), shares)

    def norms(self) -> Tensor:
        """‖g_n‖, ``[S]``."""
        return self.by_parameter.sum(1).sqrt()


def norms_by_parameter(problem: Problem) -> Tensor:
    """‖g_n‖² by sample and parameter, ``[N, number of parameters]``, as the library computes them."""
    space = problem.space
    parts = [torch.empty(0, len(space.names), dtype=torch.float64, device=space.device)]
    with problem.call(Saying("norms by parameter")) as rounds:
        for _ in rounds:
            with problem.backward_passes() as batches:
                for backward, point in batches:
                    consumer = _ByParameter(backward.samples, space)
                    backward.run(consumer, point.residual_by_sample)
                    parts.append(torch.stack([norms.total for norms in consumer.norms], 1).double())
    norms = problem.group.rows(torch.cat(parts), problem.ranks.shares)
    return norms * problem.sample_scale() ** 2


class _ByParameter:
    """Consumer: the squared norms of each parameter's part by themselves."""

    def __init__(self, samples: int, space: ParameterSpace) -> None:
        self.norms = [SquaredNorms(samples, space) for _ in space.names]

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        self.norms[parameter].use(parameter, use, arrange)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        self.norms[parameter].gradient(parameter, sample, gradient)
