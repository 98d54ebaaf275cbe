"""Collectives as they are called, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):
    """Counts the operations of torch.distributed that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if name.startswith(("c10d.", "_c10d_functional.")):
            self.counts[name.split(".")[1]] += 1
        return function(*args, **(kwargs or {}))


def counted(call: Any) -> dict[str, int]:
    """How often which collective is called in ``call()``."""
    with torch.no_grad(), Collectives() as found:
        call()
    return dict(found.counts)
