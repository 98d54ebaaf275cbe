"""Which bias belongs to which weight, read from the graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from curvext.graph.autograd_graph import Graph
from curvext.operations.node import Saved
from curvext.operations.table import operation
from curvext.operations.view_chain import is_reshape, is_view

#: (node, number of its edge) of every operation that uses a parameter, sorted
_Meetings = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Wiring:
    """How the graph of a batch uses the parameters, which are numbered.

    Attributes:
        partners: {bias: weight} of biases that are used with that weight alone, and with each of its uses.
        used: parameters in the graph.
        overlapping: parameters with uses that share elements.
        tied: parameters with two uses, as a matrix and as a table.
    """

    partners: dict[int, int]
    used: frozenset[int]
    overlapping: frozenset[int] = frozenset()
    tied: frozenset[int] = frozenset()


def partners(graph: Graph) -> dict[int, int]:
    """{bias: weight} by number, for biases that are used in every product of that weight and nowhere else.

    A bias b ``[O]`` is a weight's partner where the layer computes W a + b: ``addmm``, a convolution, or a product to
    which b is added. Then the gradient by (W, b) is Σ_s g_s (a_s, 1)ᵀ.
    """
    leaf = {number: position for position, number in graph.parameter_at.items()}
    weight_at = {_products_at(graph, position): number for number, position in leaf.items()}
    found: dict[int, int] = {}
    for bias, position in leaf.items():
        if len(graph.shape(position)) == 1:
            weight = weight_at.get(_products_under(graph, position))
            if weight is not None and weight != bias:
                found[bias] = weight
    biases = Counter(found.values())
    return {bias: weight for bias, weight in found.items() if biases[weight] == 1}


def _products_at(graph: Graph, leaf: int) -> _Meetings:
    """The operations that use a parameter, or a rearrangement of it."""
    meetings: list[tuple[int, int]] = []
    seen, stack = {leaf}, [leaf]
    while stack:
        for parent, edge in graph.consumers[stack.pop()]:
            if not is_view(graph.names[parent]):
                meetings.append((parent, edge))
            elif parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return tuple(sorted(meetings))


def _products_under(graph: Graph, bias: int) -> _Meetings:
    """The sites of the weights to whose products a bias is added; empty if it has another use."""
    products = []
    for parent, edge in graph.consumers[bias]:
        product = _product(graph, bias, parent, edge)
        if product is None:
            return ()
        products.append(product)
    return tuple(sorted(products))


def _product(graph: Graph, bias: int, parent: int, edge: int) -> tuple[int, int] | None:
    here, saved = operation(graph.names[parent]), Saved(graph.nodes[parent])
    if here.product is not None and here.product.bias == edge:
        return (parent, here.product.right) if here.product.unscaled(saved) else None
    if here.addition is None or not here.addition(saved):
        return None
    other = graph.edges[parent][1 - edge][0]
    width = graph.shape(bias)[0]
    shape = graph.shape(parent)
    while other is not None and tuple(graph.shape(other)[-1:]) == (width,):
        if graph.shape(other).numel() != shape.numel() or len(graph.consumers[other]) != 1:
            return None
        product = operation(graph.names[other]).product
        if product is not None and product.bias is None:
            return (other, product.right)
        if not is_reshape(graph.names[other]):
            return None
        other = graph.edges[other][0][0]
    return None
