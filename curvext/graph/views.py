"""Operations that only rearrange a parameter: seen as views, they lead from it to what was used.

``in_proj_weight.chunk(3)[1].t()`` is such a chain. Applied to any tensor of the parameter's shape it
gives a view in the shape of the use, so sums over a use can be added right where they belong, and a
vector's block can be read in the arrangement of the use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvext.graph.autograd_graph import LEAF, Graph

#: (node, which of its outputs, shape of that output, input) → the same rearrangement of the input
Selection = Callable[[Any, int, torch.Size, Tensor], Tensor]


def _signed(value: int) -> int:
    """Nodes keep negative dimensions in unsigned fields."""
    return value - 2**64 if value >= 2**63 else value


def _reshaped(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.view(shape)


def _same(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x


def _t(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.t()


def _transpose(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))


def _permute(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.permute([_signed(d) for d in node._saved_dims])


def _select(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.select(_signed(node._saved_dim), _signed(node._saved_index))


def _slice(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    dim = _signed(node._saved_dim) % x.ndim
    start = _signed(node._saved_start or 0)
    step = node._saved_step
    start = start + x.shape[dim] if start < 0 else start
    index = [slice(None)] * x.ndim
    index[dim] = slice(start, start + step * shape[dim], step)
    return x[tuple(index)]


def _split(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.split(node._saved_split_size, _signed(node._saved_dim))[which]


def _split_with_sizes(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.split(list(node._saved_split_sizes), _signed(node._saved_dim))[which]


def _unbind(node: Any, which: int, shape: torch.Size, x: Tensor) -> Tensor:
    return x.unbind(_signed(node._saved_dim))[which]


_VIEWS: dict[str, Selection] = {
    "AliasBackward0": _same,
    "CloneBackward0": _same,
    "PermuteBackward0": _permute,
    "ReshapeAliasBackward0": _reshaped,
    "SelectBackward0": _select,
    "SliceBackward0": _slice,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split_with_sizes,
    "SqueezeBackward0": _reshaped,
    "SqueezeBackward1": _reshaped,
    "SqueezeBackward2": _reshaped,
    "TBackward0": _t,
    "TransposeBackward0": _transpose,
    "UnbindBackward0": _unbind,
    "UnsafeSplitBackward0": _split,
    "UnsafeViewBackward0": _reshaped,
    "UnsqueezeBackward0": _reshaped,
    "ViewBackward0": _reshaped,
}


def is_view(name: str) -> bool:
    """Whether a node of this name only rearranges its input."""
    return name in _VIEWS


#: nodes that give their input in another dtype, as autocast does
_CAST = "ToCopyBackward0"


def leads_on(graph: Graph, position: int) -> bool:
    """Whether a node only rearranges its input, or rounds it to another real dtype, which the derivative passes by."""
    if graph.names[position] != _CAST:
        return is_view(graph.names[position])
    child, _ = graph.edges[position][0]
    if child is None:
        return False
    # a parameter on another device, or as a complex number, is no view of itself
    before, after = graph.made(child), graph.made(position)
    return (
        before.is_floating_point() and after.is_floating_point() and before.device == after.device
    )


def is_reshape(name: str) -> bool:
    """Whether a node of this name keeps the order of the elements."""
    return _VIEWS.get(name) is _reshaped


def selector(graph: Graph, position: int, which: int) -> Callable[[Tensor], Tensor]:
    """The rearrangement that a node stands for, of any tensor in its input's shape; a copy where it must be."""
    name, node, shape = graph.names[position], graph.nodes[position], graph.shape(position, which)
    rearrange = _VIEWS[name]
    if rearrange is _reshaped:
        return lambda x: x.reshape(shape)
    return lambda x: rearrange(node, which, shape, x)


class ViewChain:
    """The chain of selections between a parameter and one use of it.

    Args:
        graph: the graph.
        steps: (node, which of its outputs) from the parameter to the use.
    """

    def __init__(self, graph: Graph, steps: list[tuple[int, int]]) -> None:
        self._graph = graph
        self._steps = steps

    @classmethod
    def below(cls, graph: Graph, derived: tuple[int, int]) -> ViewChain | None:
        """The chain below a used value; None if it is not one, or not one of views."""
        steps: list[tuple[int, int]] = []
        position, which = derived
        while graph.names[position] != LEAF:
            if not leads_on(graph, position):
                return None
            if graph.names[position] != _CAST:
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
        for position, which in self._steps:
            name, node = self._graph.names[position], self._graph.nodes[position]
            x = _VIEWS[name](node, which, self._graph.shape(position, which), x)
        return x

    def image(self, shape: torch.Size) -> Tensor:
        """For each element of the use the number of the parameter's element it is."""
        return self(torch.arange(shape.numel(), device="cpu").view(shape))
