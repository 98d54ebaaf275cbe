"""Checks the user's hooks on tensors of the graph, which PyTorch does not expose.

A hook that acts on each sample separately (scales, clamps) treats g_n like the gradient of losses[n]. One that mixes
samples (divides by the norm of the whole batch, say) does not, and nothing in the graph shows it. So if hooks were
registered since the last call, the gradient of one sample is computed again on its own and compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.graph.autograd_graph import LEAF, Graph
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.reductions import BlockSum
from curvext.torch_internals.hooks import hooks_made

_seen: list[int] = []


def hooks_may_be_new() -> bool:
    """Whether any hook was registered since :func:`remember`: PyTorch numbers all hooks."""
    return _seen != [hooks_made()]


def remember() -> None:
    """Records that all hooks so far have been checked."""
    _seen[:] = [hooks_made()]


class OneSample:
    """The gradient of one sample from the backward pass, to be compared with the one computed on its own.

    Args:
        losses: ``[N]`` with their graph.
        leaves: the parameters.
    """

    def __init__(self, losses: Tensor, leaves: Sequence[Tensor]) -> None:
        self._losses = losses
        self._leaves = list(leaves)
        self._sum = BlockSum.apart(leaves)
        #: the sample; not the first, where padding and special cases are common
        self.number = len(losses) // 2

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """Receives a use."""
        self._sum.add(parameter, use.sample(self.number).clone(), arrange)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """Receives the gradient of one sample."""
        if sample == self.number:
            self._sum.add(parameter, gradient.clone())

    def check(self) -> None:
        """Raises a ValueError if the two differ by more than rounding."""
        alone = torch.zeros_like(self._losses)
        alone[self.number] = 1
        exact = torch.autograd.grad(
            self._losses, self._leaves, alone, retain_graph=True, allow_unused=True
        )
        eps = self._rounding()
        pairs = [
            (torch.zeros_like(found) if g is None else g.to_dense().to(found.dtype), found)
            for g, found in zip(exact, self._sum.blocks(), strict=True)
        ]
        size = torch.stack([g.double().norm() for g, _ in pairs]).norm()
        for g, found in pairs:
            allowed = eps**0.5 * g.double().norm() + 100 * eps * size
            if bool((found - g).double().norm() > allowed):
                raise ValueError(
                    f"losses: the gradient of losses[{self.number}] by itself differs from the one in the batch: "
                    "a hook on a tensor of the graph mixes samples, or is random; remove it, or call curvext.backward "
                    "without norms, squares and a function of norms"
                )

    def _rounding(self) -> float:
        """The eps of the least precise dtype in the graph."""
        graph = Graph(self._losses, [])
        dtypes = {graph.dtypes(i)[0] for i, name in enumerate(graph.names) if name != LEAF}
        return max(torch.finfo(d).eps for d in dtypes if d.is_floating_point)
