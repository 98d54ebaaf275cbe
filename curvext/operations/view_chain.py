"""Operations that only rearrange a parameter, as a chain of views from it to its use.

``in_proj_weight.chunk(3)[1].t()`` is such a chain. Applied to any tensor of the parameter's shape it
gives a view in the shape of the use, so sums over a use can be added right where they belong, and a
vector's block can be read in the arrangement of the use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvext.graph.autograd_graph import LEAF, Graph
from curvext.operations.node import Node
from curvext.operations.table import operation
from curvext.operations.views import reshaped


def is_view(name: str) -> bool:
    """Whether a node of this name only rearranges its input."""
    return operation(name).view is not None


def is_reshape(name: str) -> bool:
    """Whether a node of this name keeps the order of the elements."""
    return operation(name).view is reshaped


def leads_on(graph: Graph, position: int) -> bool:
    """Whether a node only rearranges its input, or rounds it to another real dtype, which the derivative ignores."""
    here = operation(graph.names[position])
    if not here.cast:
        return here.view is not None
    child, _ = graph.edges[position][0]
    if child is None:
        return False
    # a parameter on another device, or as a complex number, is no view of itself
    before, after = graph.made(child), graph.made(position)
    return (
        before.is_floating_point() and after.is_floating_point() and before.device == after.device
    )


def rearrangement(graph: Graph, position: int, which: int) -> Callable[[Tensor], Tensor]:
    """The rearrangement that a node stands for, of any tensor in its input's shape; a copy where it must be."""
    view, node = operation(graph.names[position]).view, Node(graph.nodes[position], which)
    assert view is not None
    if view is reshaped:
        return lambda x: x.reshape(node.shape)
    return lambda x: view(node, x)


class ViewChain:
    """The chain of views between a parameter and one use of it.

    Args:
        graph: the graph.
        steps: (node, which of its outputs) from the parameter to the use.
    """

    def __init__(self, graph: Graph, steps: list[tuple[int, int]]) -> None:
        self._steps = steps
        self._views = [
            (view, Node(graph.nodes[position], which))
            for position, which in steps
            if (view := operation(graph.names[position]).view) is not None
        ]

    @classmethod
    def below(cls, graph: Graph, derived: tuple[int, int]) -> ViewChain | None:
        """The chain below a used value; None if it is not one, or not one of views."""
        steps: list[tuple[int, int]] = []
        position, which = derived
        while graph.names[position] != LEAF:
            if not leads_on(graph, position):
                return None
            if not operation(graph.names[position]).cast:
                steps.insert(0, (position, which))
            child, which = graph.edges[position][0]
            if child is None:
                return None
            position = child
        found = cls(graph, steps)
        try:
            found(torch.empty(graph.shape(position), device="meta"))
        except RuntimeError:  # a reshape that had to copy is no view
            return None
        return found

    def on(self, graph: Graph) -> ViewChain:
        """The same chain in another graph of the same structure."""
        return ViewChain(graph, self._steps)

    def __call__(self, x: Tensor) -> Tensor:
        """A tensor in the parameter's shape as a view in the shape of the use."""
        for view, node in self._views:
            x = view(node, x)
        return x

    def image(self, shape: torch.Size) -> Tensor:
        """For each element of the use the number of the parameter's element it is."""
        return self(torch.arange(shape.numel(), device="cpu").view(shape))
