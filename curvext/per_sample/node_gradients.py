"""The gradient at some nodes of a graph, by one run of PyTorch's engine that computes no gradient below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext.graph.autograd_graph import Graph
from curvext.operations.node import Node
from curvext.operations.table import operation


def gradients_at(
    graph: Graph,
    output: Tensor,
    cotangent: Tensor,
    nodes: Set[int],
    lowest: Set[int],
    arrived: Callable[[int, Tensor], None],
    retain: bool,
) -> None:
    """One backward pass that reports the gradient at the output of each of ``nodes`` and stops there.

    The engine runs a node only if something below it was asked for, so the lowest of them are asked
    for by edge and the others report by a hook as the pass goes through.
    """
    if not nodes:
        return

    def hook_for(position: int) -> Callable[[tuple[Tensor, ...]], None]:
        def hook(gradients: tuple[Tensor, ...]) -> None:
            if gradients[0] is not None:
                arrived(position, gradients[0])

        return hook

    with _removed_after() as handles:
        for position in nodes - lowest:
            handles.append(graph.nodes[position].register_prehook(hook_for(position)))
        edges = [GradientEdge(graph.nodes[position], 0) for position in lowest]
        gradients = torch.autograd.grad(
            output, edges, cotangent, retain_graph=retain, allow_unused=True
        )
    for position, gradient in zip(lowest, gradients, strict=True):
        if gradient is not None:
            arrived(position, gradient)


@contextmanager
def repeatable(graph: Graph) -> Iterator[None]:
    """Two passes are compared to the last bit, so fused attention of CUDA gives its gradients in closed form."""
    with _removed_after() as handles:
        for node, name in zip(graph.nodes, graph.names, strict=True):
            in_fixed_order = operation(name).fixed_order
            if in_fixed_order is not None:
                handles.append(node.register_hook(in_fixed_order(Node(node))))
        yield


@contextmanager
def _removed_after() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
