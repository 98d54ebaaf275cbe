"""A proof of where samples lie in every tensor of a graph, and the facts that it rests on.

The rule of each operation carries owners from the output, whose row n is sample n's, down to the parameters. The proof
records everything that the rules read of the graph, so it holds for a later graph of the same structure with the same
readings. Comparing a shape or a dimension is cheap; an index has to be read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from curvext.graph.autograd_graph import LEAF, Graph
from curvext.operations.flow import Inputs
from curvext.operations.node import saved
from curvext.operations.table import operation
from curvext.operations.view_chain import is_view
from curvext.samples import owners
from curvext.samples.owners import Owners

#: one reading: a function below, the node, and further arguments
Reading = tuple[Callable[..., Any], Any, Any]


@dataclass(frozen=True)
class Proof:
    """The proof for one graph.

    Args:
        owners: of each node's first output, by position; a node that is missing has none.
        by_index: positions whose owners follow from indices, not from the structure alone.
        readings: the facts that it follows from.
    """

    owners: dict[int, Owners]
    by_index: set[int]
    readings: dict[Reading, Any] = field(repr=False)

    def holds(self, graph: Graph) -> bool:
        """Whether another graph of the same structure has the same readings."""
        try:
            return all(
                _same(read(graph, position, which), seen)
                for (read, position, which), seen in self.readings.items()
            )
        except RuntimeError:  # an index that was written to after its use
            return False

    def read(self, graph: Graph, read: Callable[..., Any], position: int, which: Any) -> Any:
        """Reads a fact of the graph and records it."""
        reading = (read, position, which)
        if reading not in self.readings:
            self.readings[reading] = read(graph, position, which)
        return self.readings[reading]


def prove(graph: Graph, samples: int) -> Proof:
    """Carries owners from the output ``[N, ...]`` of ``graph`` down to its parameters."""
    proof = Proof({}, set(), {})
    shape = proof.read(graph, Graph.shape, 0, graph.output_nr)
    if not shape or shape[0] != samples:
        return proof
    rows = np.arange(samples).reshape(-1, *(1,) * (len(shape) - 1))
    found: dict[int, dict[int, Owners | None]] = {0: {graph.output_nr: rows}}
    for position in graph.parents_first:
        at_outputs = {
            number: None if o is None else owners.compressed(o)
            for number, o in found.pop(position, {}).items()
        }
        if at_outputs.get(0) is not None:
            proof.owners[position] = cast(Owners, at_outputs[0])
        inputs, by_index = _inputs(proof, graph, position, at_outputs)
        for (child, number), o in zip(graph.edges[position], inputs, strict=True):
            if child is None:
                continue
            if by_index or position in proof.by_index:
                proof.by_index.add(child)
            of_child = found.setdefault(child, {})
            of_child[number] = owners.merged(of_child[number], o) if number in of_child else o
    return proof


def _inputs(
    proof: Proof, graph: Graph, position: int, at_outputs: dict[int, Owners | None]
) -> tuple[Inputs, bool]:
    """The owners of a node's inputs, and whether they follow from indices."""
    edges, flow = graph.edges[position], operation(graph.names[position]).flow
    nothing: Inputs = [None] * len(edges)
    if not edges or flow is None or any(o is None for o in at_outputs.values()):
        return nothing, False
    at = _Node(proof, graph, position)
    try:
        count = len(graph.dtypes(position))
        out = [
            at_outputs[number] if number in at_outputs else owners.nobody(len(at.out_shape(number)))
            for number in range(count)
        ]
        inputs = flow(at, out)
    except (RuntimeError, AttributeError, IndexError, ValueError, _TooLarge):
        return nothing, at.by_index
    if len(inputs) != len(edges):
        inputs = [*inputs, *nothing][: len(edges)]
    return inputs, at.by_index


class _TooLarge(Exception):
    """A tensor has too many elements to be read."""


class _Node:
    """A node as rules read it; every reading becomes part of the proof."""

    def __init__(self, proof: Proof, graph: Graph, position: int) -> None:
        self._proof = proof
        self._graph = graph
        self._position = position
        self.inputs: Sequence[bool] = [child is not None for child, _ in graph.edges[position]]
        self.by_index = False

    def shape(self, number: int) -> tuple[int, ...]:
        child, which = self._graph.edges[self._position][number]
        assert child is not None
        return cast("tuple[int, ...]", self._proof.read(self._graph, Graph.shape, child, which))

    def out_shape(self, number: int = 0) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self._read(Graph.shape, number))

    def attribute(self, name: str) -> Any:
        return self._read(_attribute, name)

    def values(self, name: str, thin: bool = False) -> Any:
        self.by_index = True
        return self._read(_thin_values if thin else _values, name)

    def _read(self, read: Callable[..., Any], which: Any) -> Any:
        return self._proof.read(self._graph, read, self._position, which)

    def is_parameter(self, number: int) -> bool:
        position, _ = self._graph.edges[self._position][number]
        while position is not None and is_view(self._graph.names[position]):
            position, _ = self._graph.edges[position][0]
        return position is not None and self._graph.names[position] == LEAF


def _attribute(graph: Graph, position: int, name: str) -> Any:
    return saved(graph.nodes[position], name)


def _values(graph: Graph, position: int, name: str) -> Any:
    return _as_arrays(saved(graph.nodes[position], name), thin=False)


def _thin_values(graph: Graph, position: int, name: str) -> Any:
    return _as_arrays(saved(graph.nodes[position], name), thin=True)


def _as_arrays(value: Any, thin: bool) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_as_arrays(s, thin) for s in value)
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided:
        row, column = value.detach().to_sparse_coo().coalesce().indices().cpu().numpy()
        return row, column
    if value.numel() > owners.LIMIT:
        raise _TooLarge
    value = value.detach()
    if thin:
        value = value[tuple(slice(None) if step else slice(0, 1) for step in value.stride())]
    if value.is_floating_point() or value.is_complex():
        value = value != 0
    return value.cpu().numpy().copy()


def _same(now: Any, seen: Any) -> bool:
    kind = type(seen)
    if kind is np.ndarray:
        return isinstance(now, np.ndarray) and np.array_equal(now, seen)
    if kind is tuple:
        return len(now) == len(seen) and all(map(_same, now, seen))
    return bool(now == seen)
