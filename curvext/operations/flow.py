"""The arguments of rules of data flow, and helpers that they share.

A rule knows the data flow of an operation and not its values: that a softmax mixes along one dimension, that a
convolution keeps images apart. Where indices decide the flow, the rule reads them. All possible flow counts, also
through a factor that happens to be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from curvext.operations.node import dimensions
from curvext.samples import owners as own
from curvext.samples.owners import Owners

Outputs = Sequence[Owners | None]
Inputs = list[Owners | None]

#: the owners of each output → those of each input, None where samples may meet
Flow = Callable[["At", Outputs], Inputs]
#: a node and its number of dimensions → those along which it mixes
DimsOf = Callable[["At", int], Sequence[int]]


class At(Protocol):
    """A node as rules may read it; every reading becomes part of the proof."""

    @property
    def inputs(self) -> Sequence[bool]:
        """Which inputs lead to parameters."""

    def shape(self, number: int) -> tuple[int, ...]:
        """Of input ``number``, which must lead to a parameter."""

    def out_shape(self, number: int = 0) -> tuple[int, ...]:
        """Of output ``number``."""

    def attribute(self, name: str) -> Any:
        """A number, a tuple of numbers or None that the node saved."""

    def values(self, name: str, thin: bool = False) -> Any:
        """A tensor that the node saved as an array, or a tuple of such; of a sparse one its (row, column).

        Of real numbers it is where they are not zero. With ``thin`` a dimension that was expanded has size 1.
        """

    def is_parameter(self, number: int) -> bool:
        """Whether input ``number`` is a parameter, perhaps rearranged."""


def each(at: At, owner_of: Callable[[int], Owners | None]) -> Inputs:
    """One answer for each input that leads to a parameter."""
    return [owner_of(i) if wanted else None for i, wanted in enumerate(at.inputs)]


def constant(at: At, number: int, out: Outputs) -> Owners | None:
    """Of an input of which every element may reach the whole output."""
    return own.constant(out[0], len(at.shape(number)))


# ---------------------------------------------------------------------- shared by several operations


def elementwise(at: At, out: Outputs) -> Inputs:
    """Inputs are broadcast to the output."""
    if len(at.inputs) == 1:
        return [out[0]]
    return each(at, lambda i: own.summed_to(out[0], at.shape(i)))


def local(dims_of: DimsOf) -> Flow:
    """Mixes along some dimensions of its first input, whose others stay where they are; one output, as many of them."""

    def rule(at: At, out: Outputs) -> Inputs:
        if out[0] is None:
            return [None] * len(at.inputs)
        mixed = own.along(out[0], dims_of(at, out[0].ndim))
        return each(at, lambda i: mixed if i == 0 else constant(at, i, out))

    return rule


def saved_dim(at: At, ndim: int) -> list[int]:
    return dimensions(at.attribute("dim"), ndim)


def whole(at: At, out: Outputs) -> Inputs:
    """One number of all elements."""
    return [constant(at, 0, out)]
