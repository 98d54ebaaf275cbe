"""J v by carrying tangents up the kept graph: what the backward pass saved is all the forward mode needs.

A node of the graph stands for one operation y = h(x_1, x_2, …). Its tangent ẏ = Σ_i (∂h/∂x_i) ẋ_i costs
what the operation cost, and the network is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from curvext.graph.autograd_graph import LEAF, Graph, is_python_function
from curvext.operations.node import Node, transposed
from curvext.operations.operation import Tangent
from curvext.operations.table import operation
from curvext.operations.view_chain import rearrangement

_Carry = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


class Tangents:
    """The tangents of some values along a direction of the parameters, on a kept graph.

    Args:
        graph: the graph.
        roots: (node, which of its outputs) of the values; None for the graph's output alone.
    """

    def __init__(self, graph: Graph, roots: Sequence[tuple[int, int]] | None = None) -> None:
        wanted = [(0, graph.output_nr)] if roots is None else list(roots)
        order = _children_first(graph, [position for position, _ in wanted])
        #: (node, which of its outputs) → where its tangent is kept; the place after the last stays empty
        places: dict[tuple[int, int], int] = {}
        complex_places: set[int] = set()
        self._steps: list[_Step] = []
        for position in order:
            step = _step(graph, position, places, complex_places)
            places |= {(position, which): place for which, place in enumerate(step.outputs)}
            self._steps.append(step)
        self._places = len(places)
        self._roots = [places.get(root, -1) for root in wanted]
        self._done = _read_last([step.inputs for step in self._steps], keep={-1, *self._roots})

    @staticmethod
    def missing(graph: Graph) -> set[str]:
        """The names of nodes that have no tangent: functions written in Python, fused attention not known here."""
        return {
            graph.names[i]
            for i in _children_first(graph)
            if graph.names[i] != LEAF
            and operation(graph.names[i]).tangent is None
            and (
                is_python_function(graph.nodes[i]) or operation(graph.names[i]).once_differentiable
            )
        }

    def __call__(self, v: Sequence[Tensor]) -> Tensor | None:
        """The tangent of the first root, or None where it is zero; ``v`` has one tensor per parameter."""
        return self.of(v)[0]

    def of(self, v: Sequence[Tensor]) -> list[Tensor | None]:
        """The tangent of every root."""
        at: list[Tensor | None] = [None] * (self._places + 1)
        with torch.no_grad():
            for step, done in zip(self._steps, self._done, strict=True):
                if step.parameter is not None:
                    # a column of a block of vectors may have any stride
                    at[step.outputs[0]] = v[step.parameter].contiguous()
                    continue
                inputs = [at[place] for place in step.inputs]
                if any([t is not None for t in inputs]):
                    if step.rule is not None and step.node is not None:
                        tangent = step.rule(step.node, *inputs)
                        # of mixed dtypes, as where a norm on CUDA keeps statistics of bfloat16 in float32, comes the
                        # widest
                        at[step.outputs[0]] = None if tangent is None else tangent.to(step.dtype)
                    elif step.carry is not None:
                        for place, found in zip(step.outputs, step.carry(inputs), strict=False):
                            at[place] = found
                for place in done:
                    at[place] = None
        return [at[place] for place in self._roots]


@dataclass(frozen=True)
class _Step:
    """One operation, or a parameter, which has no inputs.

    Args:
        inputs, outputs: where the tangents are kept.
        parameter: its number, or None for an operation.
        rule: the operation's tangent rule, of the node and the tangents of its inputs, or None.
        node: for the rule.
        dtype: of the operation's result.
        carry: without a rule, from the tangents of the inputs to those of the outputs.
    """

    inputs: list[int]
    outputs: range
    parameter: int | None = None
    rule: Tangent | None = None
    node: Node | None = None
    dtype: torch.dtype | None = None
    carry: _Carry | None = None


def _step(
    graph: Graph, position: int, places: dict[tuple[int, int], int], complex_places: set[int]
) -> _Step:
    """A node as a step; ``places`` tells of those before it, ``complex_places`` which of them are complex."""
    node, free = graph.nodes[position], len(places)
    if graph.names[position] == LEAF:
        return _Step([], range(free, free + 1), graph.parameter_at[position])
    inputs = [-1 if c is None else places.get((c, nr), -1) for c, nr in graph.edges[position]]
    dtypes = graph.dtypes(position)
    count, is_complex = len(dtypes), any(dtype.is_complex for dtype in dtypes)
    if is_complex:
        complex_places.update(range(free, free + count))
    here, outputs = operation(graph.names[position]), range(free, free + count)
    if here.view is not None:
        views = [rearrangement(graph, position, which) for which in range(count)]
        return _Step(inputs, outputs, carry=_rearranged(views))
    # a backward multiplies by conjugates, which rules know nothing of
    if here.tangent is not None and not is_complex and complex_places.isdisjoint(inputs):
        return _Step(inputs, outputs, rule=here.tangent, node=Node(node), dtype=dtypes[0])
    return _Step(inputs, outputs, carry=partial(transposed, node))


def _rearranged(views: list[Callable[[Tensor], Tensor]]) -> _Carry:
    def carry(inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        (x,) = (t for t in inputs if t is not None)
        return [view(x) for view in views]

    return carry


def _read_last(inputs: Sequence[Sequence[int]], keep: set[int]) -> list[set[int]]:
    """For each step the inputs that none after it reads, but for those to keep."""
    read = set(keep)
    done: list[set[int]] = []
    for places in reversed(inputs):
        done.append(set(places) - read)
        read.update(places)
    return done[::-1]


def _children_first(graph: Graph, roots: Sequence[int] = (0,)) -> list[int]:
    """The positions at and below ``roots`` from which a parameter can be reached, each after all it depends on."""
    active: list[bool | None] = [None] * len(graph.nodes)
    order: list[int] = []
    stack = list(roots)
    while stack:
        i = stack[-1]
        if active[i] is not None:
            stack.pop()
            continue
        waiting = [c for c, _ in graph.edges[i] if c is not None and active[c] is None]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        active[i] = i in graph.parameter_at or any(
            c is not None and bool(active[c]) for c, _ in graph.edges[i]
        )
        if active[i]:
            order.append(i)
    return order
