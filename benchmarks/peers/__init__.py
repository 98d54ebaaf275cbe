"""The libraries that curvext is compared with: one file each, every quantity in its best documented mode.

An answer leaves a file here as a flat tensor in curvext's units and order, so that the error against float64 can
stand beside its time. A library that cannot do a quantity raises, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.models.networks import Network

Call = Callable[[], Tensor]


class NotMeasured(Exception):
    """Why a quantity is left out, where it is not an error of the library."""


@dataclass(frozen=True)
class Ask:
    """A problem: a network, a vector v [P], and a block V [P,K]."""

    network: Network
    v: Tensor
    V: Tensor


@dataclass(frozen=True)
class Entry:
    """One library's way to one quantity: ``make`` prepares it (imports, sets up), what it returns is timed."""

    quantity: str
    library: str
    mode: str
    make: Callable[[Ask], Call]
    #: the truth it is compared with, where it is not the quantity of that name
    truth: str | None = None

    @property
    def key(self) -> str:
        """Its name in a table of timings."""
        return f"{self.quantity}|{self.library}|{self.mode}"
