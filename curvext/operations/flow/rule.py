"""What a rule of data flow is given, and what all rules share.

A rule knows the data flow of an operation and not its values: that a softmax mixes along one dimension, that a
convolution keeps images apart. What indices decide it reads from the indices. Everything that may flow counts, also
through a factor that happens to be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from curvext.samples import owners as own
from curvext.samples.owners import Owners

Outputs = Sequence[Owners | None]
Inputs = list[Owners | None]

#: the owners of each output → those of each input, None where samples may meet
Rule = Callable[["At", Outputs], Inputs]


class At(Protocol):
    """What a rule may read of a node; all that it reads is part of the proof."""

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


def signed(value: int) -> int:
    """Nodes keep negative numbers in unsigned fields."""
    return value - 2**64 if value >= 2**63 else value


def dimension(value: int, size: int) -> int:
    """A dimension of ``size``, or an index below it, counted from the front."""
    value = signed(value)
    return value + size if value < 0 else value


def dimensions(value: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Dimensions as saved; None or no one of them stands for all."""
    if value is None or value == ():
        return list(range(ndim))
    several = (value,) if isinstance(value, int) else value
    return [dimension(d, ndim) for d in several]
