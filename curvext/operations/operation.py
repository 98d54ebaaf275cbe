"""The rules of one operation of PyTorch, under the name of its node in the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.operations.flow import Flow
from curvext.operations.node import Node, Saved
from curvext.samples.layout import Layout

#: the purpose of a graph: backward passes alone; tangents as well; tangents beside a function written in Python
#: without one, so that J v takes double backward; second derivatives; those in a trace; those by PyTorch alone
GraphUse = Literal["backward", "linearised", "doubled", "twice", "traced", "plain"]


@dataclass(frozen=True)
class OutputGradient:
    """The gradient at the output of a node that uses a parameter.

    Args:
        saved: the node's saved values, detached from the graph.
        g: the gradient.
        layout: where samples lie in it.
        samples: N.
        shape: of the parameter as it is used here.
    """

    saved: Saved
    g: Tensor
    layout: Layout
    samples: int
    shape: torch.Size

    def by_sample(self, x: Tensor) -> Tensor:
        """A tensor laid out like g with the samples in front, ``[N, ...]``."""
        return self.layout.samples_first(x, self.samples)


#: the gradient at the output → the per-sample gradient of one input; None where the rule does not apply
PerSample = Callable[[OutputGradient], StructuredGradient | None]
#: a node and the tangent of each of its inputs, None for zero → that of its first output
Tangent = Callable[..., Tensor | None]
#: a node and a tensor in the shape of its input → the same rearrangement of that
View = Callable[[Node, Tensor], Tensor]
#: the gradients of a node's inputs, and of its outputs → others for its inputs
Hook = Callable[[tuple[Tensor | None, ...], tuple[Tensor, ...]], Any]


def _always(saved: Saved) -> bool:
    return True


@dataclass(frozen=True)
class Product:
    """y = A B + b by the numbers of its inputs; where it is a layer's, B is the weight.

    Args:
        left, right: A and B.
        bias: b, of an operation that adds one.
        factors: the names under which A and B are saved, where both are matrices; else None.
        unscaled: whether neither A B nor b is multiplied by a number.
    """

    left: int
    right: int
    bias: int | None = None
    factors: tuple[str, str] | None = None
    unscaled: Callable[[Saved], bool] = _always


@dataclass(frozen=True)
class Operation:
    """Facets of an operation y = h(x_1, x_2, …), each of them optional.

    Args:
        per_sample: number of an input → the rule for that input's per-sample gradient.
        tangent: ẏ = Σ_i (∂h/∂x_i) ẋ_i. Without this facet the tangent is the backward pass of the backward pass,
            :func:`~curvext.operations.node.transposed`.
        flow: which sample's output each element of each input can reach.
        view: the rearrangement, of an operation that only rearranges its first input.
        cast: whether it only gives its input in another dtype.
        multilinear: whether it is linear in each of its inputs.
        product: of a product, which input is what.
        addition: of a sum of two inputs: whether neither is multiplied by a number.
        look_up: whether its first input is a table of which it reads rows.
        once_differentiable: whether PyTorch has no derivative of its backward pass.
        alternatives: use of the graph → a context in which the forward pass uses an alternative, because derivatives of
            this operation are missing, wrong or slow for that use.
        refusal: why there are only first derivatives, and no alternative.
        fixed_order: a hook that gives the same bits each time, for a backward pass that adds up in any order.
        batch_statistics: whether it normalises by statistics that samples share.
        sparse: whether the gradient of its table is sparse.
        opaque: why it hides the operations inside, and what to do about it.
    """

    per_sample: Mapping[int, PerSample] = field(default_factory=lambda: MappingProxyType({}))
    tangent: Tangent | None = None
    flow: Flow | None = None
    view: View | None = None
    cast: bool = False
    multilinear: bool = False
    product: Product | None = None
    addition: Callable[[Saved], bool] | None = None
    look_up: bool = False
    once_differentiable: bool = False
    alternatives: Mapping[GraphUse, Callable[[], AbstractContextManager[object]]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    refusal: str | None = None
    fixed_order: Callable[[Node], Hook] | None = None
    batch_statistics: Callable[[Saved], bool] | None = None
    sparse: Callable[[Saved], bool] | None = None
    opaque: str | None = None

    def factor(self, edge: int) -> Literal["left", "right"] | None:
        """Which factor of a product of two matrices an input is."""
        if self.product is None or self.product.factors is None:
            return None
        sides: dict[int, Literal["left", "right"]] = {
            self.product.left: "left",
            self.product.right: "right",
        }
        return sides.get(edge)
