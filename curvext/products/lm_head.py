"""G v of a network that ends in a large linear layer, without its output: in chunks of output positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext.graph.autograd_graph import LEAF, Graph, leaf_variable
from curvext.losses import LossPoint
from curvext.operations.node import Saved
from curvext.operations.table import operation
from curvext.operations.view_chain import is_reshape
from curvext.products.kept_graph import dense_or_zeros
from curvext.products.linearisation import Linearised
from curvext.products.tangents import Tangents


class LMHeadLinearisation(Linearised):
    """One batch at fixed parameters, its output f = h W + b not kept.

    A language model's output is its largest tensor: M positions times C words. Here z = h W + b, its
    tangent ż = ḣ W + h Ẇ + ḃ and u = H_ℓ ż are made for some positions at a time, and of u only
    u Wᵀ, hᵀ u and its sum outlive the chunk.

    Args:
        output: f with its graph, ``[..., C]``; not held.
        point: the loss at f; not held.
        parameters: the leaves θ.
        chunk: output positions at a time.

    Raises:
        ValueError: the output is not made by a linear layer whose inputs and weight both depend on θ,
            or H_ℓ couples positions.
    """

    def __init__(
        self, output: Tensor, point: LossPoint, parameters: Sequence[Tensor], chunk: int
    ) -> None:
        self._parameters = list(parameters)
        self._chunk = chunk
        self._curvature = point.row_curvature()
        self._graph = graph = Graph(output, self._parameters)
        if missing := Tangents.missing(graph):
            raise _no_head(f"its graph has {', '.join(sorted(missing))}, which has no tangent here")
        head, factors = _head(graph)
        saved, edges = Saved(graph.nodes[head]), graph.edges[head]
        h, w = (getattr(saved, name) for name in factors)
        if h is None or w is None:
            raise _no_head("either its weight or all that comes before it is not among params")
        self._h, self._w = h.detach(), w.detach()
        self._b: Tensor | None = None
        *bias, (left, left_nr), (right, right_nr) = edges
        assert left is not None and right is not None  # both factors are saved
        roots = [(left, left_nr), (right, right_nr)]
        if bias:
            (leaf, nr) = bias[0]
            if leaf is None or graph.names[leaf] != LEAF:
                raise _no_head("its bias is not among params")
            self._b = leaf_variable(graph.nodes[leaf]).detach()
            roots.append((leaf, nr))
        self._edges = [GradientEdge(graph.nodes[position], nr) for position, nr in roots]
        self._tangents = Tangents(graph, roots)

    def ggn_mm(self, columns: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        moved = [self._tangents.of(v) for v in columns]
        pulled = [[torch.zeros_like(self._h), torch.zeros_like(self._w)] for _ in columns]
        if self._b is not None:
            for parts in pulled:
                parts.append(torch.zeros_like(self._b))
        for start in range(0, self._h.shape[0], self._chunk):
            rows = slice(start, start + self._chunk)
            h = self._h[rows]
            z = h @ self._w if self._b is None else torch.addmm(self._b, h, self._w)
            u = self._curvature(z, torch.stack([self._moved(rows, *m) for m in moved]), rows)
            for (by_h, by_w, *by_b), part in zip(pulled, u, strict=True):
                torch.mm(part, self._w.T, out=by_h[rows])
                by_w.addmm_(h.T, part)
                for total in by_b:
                    total += part.sum(0)
        for parts in pulled:
            yield self._pull_back(parts, parts is pulled[-1])

    def _moved(
        self, rows: slice, h: Tensor | None, w: Tensor | None, b: Tensor | None = None
    ) -> Tensor:
        """ż of some positions."""
        total = self._h[rows] @ w if w is not None else None
        if h is not None:
            total = h[rows] @ self._w if total is None else total.addmm_(h[rows], self._w)
        assert total is not None
        return total if b is None else total.add_(b)

    def _pull_back(self, parts: list[Tensor], last: bool) -> list[Tensor]:
        products = torch.autograd.grad(
            self._edges,
            self._parameters,
            parts,
            retain_graph=self.kept or not last,
            allow_unused=True,
        )
        return dense_or_zeros(products, self._parameters)

    def nbytes(self) -> int:
        return self._graph.saved_bytes()


def _head(graph: Graph) -> tuple[int, tuple[str, str]]:
    """The position of the product that makes the output, below reshapes, and where it saved its factors."""
    position = 0
    while is_reshape(graph.names[position]):
        child = graph.edges[position][0][0]
        if child is None or graph.shape(child)[-1] != graph.shape(position)[-1]:
            break
        position = child
    name = graph.names[position]
    product = operation(name).product
    if product is None or product.factors is None:
        raise _no_head(f"the output comes from {name}")
    if not product.unscaled(Saved(graph.nodes[position])):
        raise _no_head("the product is scaled")
    return position, product.factors


def _no_head(why: str) -> ValueError:
    return ValueError(
        f"chunk_outputs: the model must end in a linear layer over the classes, but {why}; "
        "leave chunk_outputs=None to keep the output"
    )
