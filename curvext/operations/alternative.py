"""Alternatives to an operation in the forward pass, for derivatives that are missing, wrong or slow.

A first forward pass finds them by the names of nodes in its graph, and is then run again. A model without
such nodes is not slowed down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

#: elements of each tensor that are worked on at a time on the CPU; a few of them fit its cache
_CHUNK = 1 << 17


def runs(length: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows of some width; large temporaries cost more than what is computed on them."""
    step = max(1, _CHUNK // max(1, width)) if device.type == "cpu" else max(1, length)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class Replaced(torch.overrides.TorchFunctionMode):
    """Replaces functions of PyTorch by an alternative.

    Args:
        functions: the names under which it is called.
        other: the replacement; returns None for arguments that it does not support.
    """

    def __init__(
        self, functions: tuple[Callable[..., Any], ...], other: Callable[..., Tensor | None]
    ) -> None:
        super().__init__()
        self._functions = functions
        self._other = other

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._functions:
            found = self._other(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)
