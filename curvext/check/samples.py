"""Per-sample gradients of both sides, summed up: squared norms by sample and parameter, and squares."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

import torch
from torch import Tensor

from curvext.check.plain import Plain
from curvext.gradients.structured import StructuredGradient
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.reductions import SquaredNorms
from curvext.problem import Problem
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
        rows: list[Tensor] = []
        V = V.double()
        #: Σ_n g_n² over these samples, ``[P]``
        self.squares = V.new_zeros(len(V))
        #: Σ_n g_n ⟨g_n, v⟩ likewise, ``[P, K]``
        self.products = torch.zeros_like(V)

        with closing(plain.sample_gradients(numbers)) as gradients:
            for gradient in gradients:
                squares = gradient.square()
                rows.append(torch.stack([part.sum() for part in squares.split(space.sizes)]))
                self.squares.add_(squares)
                self.products.addr_(gradient, gradient @ V)
        #: ‖g_n‖² by sample and parameter, ``[S, number of parameters]``
        self.by_parameter = torch.stack(rows)

    def norms(self) -> Tensor:
        """‖g_n‖, ``[S]``."""
        return self.by_parameter.sum(1).sqrt()


def norms_by_parameter(problem: Problem) -> Tensor:
    """‖g_n‖² by sample and parameter, ``[N, number of parameters]``, as the library computes them."""
    parts: list[Tensor] = []
    with problem.backward_passes() as batches:
        for backward, point in batches:
            consumer = _ByParameter(backward.samples, problem.space)
            backward.run(consumer, point.residual_by_sample)
            parts.append(torch.stack([norms.total for norms in consumer.norms], 1))
    return torch.cat(parts).double() * problem.sample_scale() ** 2


class _ByParameter:
    """Consumer: the squared norms of each parameter's part by themselves."""

    def __init__(self, samples: int, space: ParameterSpace) -> None:
        self.norms = [SquaredNorms(samples, space) for _ in space.names]

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        self.norms[parameter].use(parameter, use, arrange)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        self.norms[parameter].gradient(parameter, sample, gradient)
