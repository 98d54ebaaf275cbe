"""The first backward pass of second derivatives, without weight gradients.

Plain double backward forms w = ∇ℓ with its graph and differentiates ⟨w, v⟩. The gradient of a weight,
gᵀ x, is a third of the cost of a gradient, and only its inner product with V is needed, which is
⟨gᵀ x, V⟩ = ⟨g, x Vᵀ⟩. So the pass stops at the gradients g of the outputs of such operations, and x Vᵀ is
computed from the saved input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvext.graph.autograd_graph import Graph
from curvext.operations.node import Node
from curvext.operations.operation import Tangent
from curvext.operations.table import operation
from curvext.operations.view_chain import ViewChain, is_view


@dataclass(frozen=True)
class _WeightedNode:
    """An operation with parameters among its inputs, whose gradients are not formed.

    Args:
        position: of its node in the graph.
        weights: for each of its inputs the number of the parameter and the way to it, or None.
        rule: its tangent.
        node: it.
    """

    position: int
    weights: list[tuple[int, ViewChain] | None]
    rule: Tangent
    node: Node

    def tangent(self, v: Sequence[Tensor]) -> Tensor | None:
        """How the operation's output moves with these parameters alone, differentiable by its other inputs."""
        moved = [None if weight is None else weight[1](v[weight[0]]) for weight in self.weights]
        with torch.enable_grad():
            tangent = self.rule(self.node, *moved)
            return None if tangent is None else tangent.to(self.node.dtype)


class GradientGraph:
    """w = Jᵀ r with its graph, in the form of ⟨w, v⟩ for any v.

    Args:
        graph: of the output f.
        output: f.
        residual: r, as a differentiable function of f.
        parameters: the leaves θ.
        whole: whether it goes down to all of them, through every hook on the way.
    """

    def __init__(
        self,
        graph: Graph,
        output: Tensor,
        residual: Tensor,
        parameters: Sequence[Tensor],
        whole: bool = False,
    ) -> None:
        self.residual = residual
        nodes = [] if whole else _weighted_nodes(graph)
        inside = {weight[0] for node in nodes for weight in node.weights if weight is not None}
        rest = [i for i in range(len(parameters)) if i not in inside]
        edges = [GradientEdge(graph.nodes[node.position], 0) for node in nodes]
        found = torch.autograd.grad(
            output,
            [*edges, *(get_gradient_edge(parameters[i]) for i in rest)],
            residual,
            create_graph=True,
            allow_unused=True,
        )
        # a gradient that does not depend on r has no derivative
        at_nodes, of_rest = found[: len(nodes)], found[len(nodes) :]
        self._nodes = [(n, g) for n, g in zip(nodes, at_nodes, strict=True) if _varies(g)]
        self._rest = [(i, w) for i, w in zip(rest, of_rest, strict=True) if _varies(w)]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it holds."""
        return [t for _, t in (*self._nodes, *self._rest)]

    def paired_with(
        self, v: Sequence[Tensor], weights_move: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors t and cotangents c: the derivative of ⟨w, v⟩ is Σ_i ⟨c_i, ∂t_i⟩.

        Without ``weights_move`` only derivatives by r are asked for, on which x Vᵀ does not depend.
        """
        # tensors of inference mode cannot be part of a graph; copies made outside of it can
        v = [t.clone() if t.is_inference() else t.contiguous() for t in v]
        values = [w for _, w in self._rest]
        cotangents = [v[i] for i, _ in self._rest]
        for node, g in self._nodes:
            moved = node.tangent(v)
            if moved is None:
                continue
            values.append(g)
            cotangents.append(moved.detach())
            if weights_move and moved.requires_grad:
                values.append(moved)
                cotangents.append(g.detach())
        return values, cotangents


def _varies(t: Tensor | None) -> TypeGuard[Tensor]:
    return t is not None and t.requires_grad


def _weighted_nodes(graph: Graph) -> list[_WeightedNode]:
    """The operations that take all uses of some parameters."""
    chains: dict[tuple[int, int], tuple[int, ViewChain]] = {}
    for position, name in enumerate(graph.names):
        if operation(name).multilinear:
            for number, (child, which) in enumerate(graph.edges[position]):
                found = None if child is None else _parameter_below(graph, child, which)
                if found is not None:
                    chains[position, number] = found
    whole = {
        parameter
        for leaf, parameter in graph.parameter_at.items()
        if _all_uses(graph, leaf) <= chains.keys()
    }
    taken: dict[int, list[tuple[int, ViewChain] | None]] = {}
    for (position, number), (parameter, way) in chains.items():
        if parameter in whole:
            inputs = taken.setdefault(position, [None] * len(graph.edges[position]))
            inputs[number] = (parameter, way)
    return [_weighted(graph, position, weights) for position, weights in taken.items()]


def _weighted(
    graph: Graph, position: int, weights: list[tuple[int, ViewChain] | None]
) -> _WeightedNode:
    rule = operation(graph.names[position]).tangent
    assert rule is not None  # of everything multilinear
    return _WeightedNode(position, weights, rule, Node(graph.nodes[position]))


def _parameter_below(graph: Graph, position: int, which: int) -> tuple[int, ViewChain] | None:
    """The parameter of which a value is a rearrangement."""
    way = ViewChain.below(graph, (position, which))
    while is_view(graph.names[position]):
        child, _ = graph.edges[position][0]
        if child is None:
            return None
        position = child
    parameter = graph.parameter_at.get(position)
    return None if way is None or parameter is None else (parameter, way)


def _all_uses(graph: Graph, leaf: int) -> set[tuple[int, int]]:
    """(node, number of the input) wherever a leaf is used, through what only rearranges it."""
    uses: set[tuple[int, int]] = set()
    stack = [leaf]
    while stack:
        position = stack.pop()
        if position == 0:
            uses.add((-1, 0))  # it is the output
        for parent, number in graph.consumers[position]:
            if is_view(graph.names[parent]):
                stack.append(parent)
            else:
                uses.add((parent, number))
    return uses
