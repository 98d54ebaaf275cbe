"""J v by carrying tangents up the kept graph: forward mode needs only what was saved for the backward pass.

A node of the graph stands for one operation y = h(x_1, x_2, …). Its tangent ẏ = Σ_i (∂h/∂x_i) ẋ_i costs
what the operation cost, and the network is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from curvext.graph.autograd_graph import LEAF, Graph, is_python_function
from curvext.operations.node import Node, transposed
from curvext.operations.operation import Tangent
from curvext.operations.table import operation
from curvext.operations.view_chain import rearrangement

#: a node of the graph and its output, by numbers
Root = tuple[int, int]
#: what :attr:`Graph.signature` is
Signature = tuple[Any, ...]
#: dtypes of the outputs of each node on the way, in the order of the steps; none for a parameter
Dtypes = tuple[tuple[torch.dtype, ...], ...]
_Carry = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


class Tangents:
    """The tangents of some values along a direction of the parameters, on a kept graph.

    The order of the steps follows from the structure of the graph alone, and is worked out once for each structure.

    Args:
        graph: the graph.
        roots: (node, which of its outputs) of the values; None for the graph's output alone.
    """

    def __init__(self, graph: Graph, roots: Sequence[Root] | None = None) -> None:
        wanted = ((0, graph.output_nr),) if roots is None else tuple(roots)
        order = children_first(graph.signature, tuple([position for position, _ in wanted]))
        dtypes = [() if graph.names[i] == LEAF else tuple(graph.dtypes(i)) for i in order]
        self._schedule = _schedule(graph.signature, wanted, tuple(dtypes))
        self._rules = [_rule_of(graph, step) for step in self._schedule.steps]

    @staticmethod
    def missing(graph: Graph) -> set[str]:
        """The names of nodes that have no tangent: functions written in Python, fused attention not known here."""
        order = children_first(graph.signature, (0,))
        names = {graph.names[i] for i in order} - {LEAF}
        without = {name for name in names if operation(name).tangent is None}
        return {
            graph.names[i]
            for i in order
            if graph.names[i] in without
            and (
                is_python_function(graph.nodes[i]) or operation(graph.names[i]).once_differentiable
            )
        }

    def __call__(self, v: Sequence[Tensor]) -> Tensor | None:
        """The tangent of the first root, or None where it is zero; ``v`` has one tensor per parameter."""
        return self.of(v)[0]

    def of(self, v: Sequence[Tensor]) -> list[Tensor | None]:
        """The tangent of every root."""
        schedule = self._schedule
        at: list[Tensor | None] = [None] * (schedule.places + 1)
        with torch.no_grad():
            for step, (rule, node, carry) in zip(schedule.steps, self._rules, strict=True):
                if step.parameter is not None:
                    # a column of a block of vectors may have any stride
                    at[step.outputs[0]] = v[step.parameter].contiguous()
                    continue
                inputs = [at[place] for place in step.inputs]
                if any([t is not None for t in inputs]):
                    if rule is not None:
                        tangent = rule(node, *inputs)
                        # of mixed dtypes, as where a norm on CUDA keeps statistics of bfloat16 in float32, comes the
                        # widest
                        at[step.outputs[0]] = None if tangent is None else tangent.to(step.dtype)
                    else:
                        for place, found in zip(step.outputs, carry(inputs), strict=False):
                            at[place] = found
                for place in step.done:
                    at[place] = None
        return [at[place] for place in schedule.roots]


@dataclass(frozen=True)
class _Step:
    """One operation, or a parameter, which has no inputs.

    Args:
        position: of its node.
        inputs, outputs: where the tangents are kept.
        done: the inputs that no later step reads.
        parameter: its number, or None for an operation.
        dtype: of the operation's first result.
        real: whether no complex number is among inputs and results.
    """

    position: int
    inputs: tuple[int, ...]
    outputs: range
    done: tuple[int, ...]
    parameter: int | None
    dtype: torch.dtype | None
    real: bool


@dataclass(frozen=True)
class _Schedule:
    """The steps in order, how many places they write to, and the places of the roots."""

    steps: tuple[_Step, ...]
    places: int
    roots: tuple[int, ...]


@lru_cache(maxsize=256)
def _schedule(signature: Signature, roots: tuple[Root, ...], dtypes: Dtypes) -> _Schedule:
    """A function of the structure and of the dtypes alone, as all that is remembered must be."""
    _, edges, parameters = signature
    parameter_at = dict(parameters)
    order = children_first(signature, tuple([position for position, _ in roots]))
    #: (node, which of its outputs) → where its tangent is kept; the place after the last stays empty
    places: dict[Root, int] = {}
    complex_places: set[int] = set()
    read: list[tuple[int, ...]] = []
    written: list[range] = []
    real: list[bool] = []
    for position, kinds in zip(order, dtypes, strict=True):
        parameter, free = parameter_at.get(position), len(places)
        outputs = range(free, free + (1 if parameter is not None else len(kinds)))
        inputs: tuple[int, ...] = ()
        if parameter is None:
            inputs = tuple(
                [-1 if c is None else places.get((c, nr), -1) for c, nr in edges[position]]
            )
        if any(kind.is_complex for kind in kinds):
            complex_places.update(outputs)
        real.append(complex_places.isdisjoint(inputs) and complex_places.isdisjoint(outputs))
        places |= {(position, which): place for which, place in enumerate(outputs)}
        read.append(inputs)
        written.append(outputs)
    wanted = tuple([places.get(root, -1) for root in roots])
    done = _read_last(read, keep={-1, *wanted})
    steps = [
        _Step(i, inputs, outputs, gone, parameter_at.get(i), kinds[0] if kinds else None, is_real)
        for i, inputs, outputs, gone, kinds, is_real in zip(
            order, read, written, done, dtypes, real, strict=True
        )
    ]
    return _Schedule(tuple(steps), len(places), wanted)


def _rule_of(graph: Graph, step: _Step) -> tuple[Tangent | None, Node, _Carry]:
    """The rule of a step's operation with its node, or in place of a rule what carries inputs to outputs."""
    position, raw = step.position, graph.nodes[step.position]
    node = Node(raw)
    if step.parameter is not None:
        return None, node, _nothing
    here = operation(graph.names[position])
    if here.view is not None:
        views = [rearrangement(graph, position, which) for which in range(len(step.outputs))]
        return None, node, _rearranged(views)
    # a backward multiplies by conjugates, which rules know nothing of
    if here.tangent is not None and step.real:
        return here.tangent, node, _nothing
    return None, node, partial(transposed, raw)


def _nothing(inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    return ()


def _rearranged(views: list[Callable[[Tensor], Tensor]]) -> _Carry:
    def carry(inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        (x,) = (t for t in inputs if t is not None)
        return [view(x) for view in views]

    return carry


def _read_last(inputs: Sequence[Sequence[int]], keep: set[int]) -> list[tuple[int, ...]]:
    """For each step the inputs that none after it reads, but for those to keep."""
    read = set(keep)
    done: list[tuple[int, ...]] = []
    for places in reversed(inputs):
        done.append(tuple(set(places) - read))
        read.update(places)
    return done[::-1]


@lru_cache(maxsize=256)
def children_first(signature: Signature, roots: tuple[int, ...]) -> tuple[int, ...]:
    """The positions at and below ``roots`` from which a parameter can be reached, each after all it depends on."""
    names, edges, parameters = signature
    parameter_at = dict(parameters)
    active: list[bool | None] = [None] * len(names)
    order: list[int] = []
    stack = list(roots)
    while stack:
        i = stack[-1]
        if active[i] is not None:
            stack.pop()
            continue
        waiting = [c for c, _ in edges[i] if c is not None and active[c] is None]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        active[i] = i in parameter_at or any(c is not None and bool(active[c]) for c, _ in edges[i])
        if active[i]:
            order.append(i)
    return tuple(order)
