"""Reading PyTorch's autograd graph: nodes, edges, and the leaves that are parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from curvext.fingerprints import strided_parts

LEAF = "torch::autograd::AccumulateGrad"


def leaf_variable(node: Node) -> Tensor:
    """The tensor whose gradient an AccumulateGrad node would accumulate."""
    return cast(Tensor, cast(Any, node).variable)


def nodes_below(*roots: Node) -> set[Node]:
    """All nodes below some roots, themselves included."""
    return set(_walk(*roots))


def node_names(root: Node) -> set[str]:
    """The names of all nodes below ``root``, itself included."""
    return {node.name() for node in _walk(root)}


def names_in_python(root: Node) -> set[str]:
    """The names of those nodes below ``root`` that are functions written in Python."""
    return {node.name() for node in _walk(root) if is_python_function(node)}


def is_python_function(node: Node) -> bool:
    """Whether a node is a function written in Python."""
    return isinstance(node, torch._C._FunctionBase)


def _walk(*roots: Node) -> dict[Node, tuple[tuple[Node | None, int], ...]]:
    """All nodes below some roots in depth-first order, the same for the same computation, each with its edges."""
    found: dict[Node, tuple[tuple[Node | None, int], ...]] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            edges = found[node] = node.next_functions
            stack += [child for child, _ in edges if child is not None]
    return found


class Graph:
    """The backward graph of one output, with nodes numbered by position.

    Positions depend on the computation alone, so facts about position i in one batch hold for position i of
    every later batch with the same :attr:`signature`.

    Args:
        output: the tensor whose graph this is; it must have a ``grad_fn``.
        parameters: leaves of interest, numbered by their order.
    """

    def __init__(self, output: Tensor, parameters: Sequence[Tensor]) -> None:
        edge = get_gradient_edge(output)  # a leaf has no grad_fn, but it has a node
        #: which of the root's outputs the output is
        self.output_nr = edge.output_nr
        found = _walk(edge.node)
        self.nodes = list(found)
        position: dict[Node | None, int | None] = {node: i for i, node in enumerate(found)}
        position[None] = None
        #: node → (child position or None, which output of the child) per input edge
        self.edges: list[tuple[tuple[int | None, int], ...]] = [
            tuple([(position[child], nr) for child, nr in edges]) for edges in found.values()
        ]
        self.names = [node.name() for node in self.nodes]
        index = {id(p): i for i, p in enumerate(parameters)}
        #: leaf position → number of the parameter
        self.parameter_at: dict[int, int] = {}
        for i, name in enumerate(self.names):
            if name == LEAF:
                number = index.get(id(leaf_variable(self.nodes[i])))
                if number is not None:
                    self.parameter_at[i] = number

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Equal for two graphs of the same structure, whatever their sizes."""
        return tuple(self.names), tuple(self.edges), tuple(self.parameter_at.items())

    @cached_property
    def consumers(self) -> list[list[tuple[int, int]]]:
        """node → [(parent position, number of the parent's edge that leads here)]."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for parent, edges in enumerate(self.edges):
            for number, (child, _) in enumerate(edges):
                if child is not None:
                    found[child].append((parent, number))
        return found

    @cached_property
    def parents_first(self) -> list[int]:
        """All positions, parents first."""
        waiting = [len(parents) for parents in self.consumers]
        order = [0]
        for position in order:
            for child, _ in self.edges[position]:
                if child is not None:
                    waiting[child] -= 1
                    if waiting[child] == 0:
                        order.append(child)
        return order

    def shape(self, position: int, output_nr: int = 0) -> torch.Size:
        """Shape of the tensor that the node produced in the forward pass."""
        node = self.nodes[position]
        if self.names[position] == LEAF:
            return leaf_variable(node).shape
        return torch.Size(cast(Any, node)._input_metadata[output_nr].shape)

    def dtypes(self, position: int) -> list[torch.dtype]:
        """Dtypes of the tensors that the node produced in the forward pass."""
        return [m.dtype for m in cast(Any, self.nodes[position])._input_metadata]

    def made(self, position: int) -> Tensor:
        """An empty tensor with the dtype and device of the node's first output."""
        node = self.nodes[position]
        if self.names[position] == LEAF:
            return leaf_variable(node)
        metadata = cast(Any, node)._input_metadata[0]
        return torch.empty(0, dtype=metadata.dtype, device=metadata.device)

    def once_differentiable(self, among: Collection[str]) -> set[str]:
        """The names of functions written in Python whose backward has no derivative with respect to its cotangent.

        A backward is linear in its cotangent u, so it has a derivative by u unless it is zero. PyTorch does not
        report a missing one: a pass that bypasses a ``once_differentiable`` function raises nothing, and the output
        of a user's kernel has no graph.
        """
        written = [
            i
            for i, node in enumerate(self.nodes)
            if self.names[i] in among and is_python_function(node)
        ]
        if not written:
            return set()
        outputs: dict[int, set[int]] = {0: {self.output_nr}}
        for edges in self.edges:
            for child, nr in edges:
                if child is not None:
                    outputs.setdefault(child, set()).add(nr)
        return {self.names[i] for i in written if _loses(self.nodes[i], sorted(outputs[i]))}

    def bottom(self, positions: set[int]) -> set[int]:
        """The members of ``positions`` that reach no other member."""
        reaches: list[bool | None] = [None] * len(self.nodes)
        stack = [0]
        while stack:  # children first
            i = stack[-1]
            open_children = [c for c, _ in self.edges[i] if c is not None and reaches[c] is None]
            if open_children:
                stack.extend(open_children)
                continue
            stack.pop()
            reaches[i] = any(
                c is not None and (c in positions or reaches[c]) for c, _ in self.edges[i]
            )
        return {i for i in positions if not reaches[i]}

    def saved_bytes(self) -> int:
        """Bytes of the tensors that the graph keeps, each storage once, parameters not counted."""
        return saved_bytes(self.nodes)


def _loses(node: Node, outputs: Sequence[int]) -> bool:
    """Whether a node's backward, applied to ones, returns a nonzero tensor that does not depend on them."""
    ones = [
        torch.ones(tuple(m.shape), dtype=m.dtype, device=m.device, requires_grad=True)
        for m in (cast(Any, node)._input_metadata[nr] for nr in outputs)
    ]
    pulled = torch.autograd.grad(
        [GradientEdge(node, nr) for nr in outputs],
        [GradientEdge(child, nr) for child, nr in node.next_functions if child is not None],
        [u.clone() for u in ones],  # a backward may write to its cotangents
        create_graph=True,
        allow_unused=True,
    )

    def is_lost(p: Tensor) -> bool:
        if p.requires_grad:
            back = torch.autograd.grad(
                p, ones, torch.ones_like(p), retain_graph=True, allow_unused=True
            )
            if any(b is not None for b in back):
                return False
        return bool(_dense(p.detach()).any())

    return any(is_lost(p) for p in pulled if p is not None)


def _dense(t: Tensor) -> Tensor:
    return t.to_dense() if t.is_sparse else t


def _saved(node: Any) -> list[Any]:
    """The tensors that a node saved for its backward."""
    if is_python_function(node):
        return list(cast(Any, node).saved_tensors)
    return [getattr(node, a) for a in dir(node) if a.startswith("_saved_")]


def saved_bytes(nodes: Collection[Node]) -> int:
    """Bytes of the distinct storages saved by ``nodes``, leaf variables not counted."""
    leaves = {leaf_variable(n).untyped_storage().data_ptr() for n in nodes if n.name() == LEAF}
    storages: dict[int, int] = {}
    for node in nodes:
        for value in _saved(node):
            for t in value if isinstance(value, (tuple, list)) else (value,):
                for part in strided_parts([t]) if isinstance(t, Tensor) else ():
                    storage = part.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in storages.items() if pointer not in leaves)
