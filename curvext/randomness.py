"""A context in which the user's code must not draw random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forbid_rng(device: torch.device, complaint: str) -> Iterator[None]:
    """Restores the global generators, also after an error, and raises if they were used.

    Args:
        device: a CUDA device whose generator is checked beside that of the CPU.
        complaint: the RuntimeError's message.
    """
    before = torch.get_rng_state()
    on_cuda = device.type == "cuda"
    before_on_cuda = torch.cuda.get_rng_state(device) if on_cuda else None
    drew = False
    try:
        yield
    finally:
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            drew = True
        if before_on_cuda is not None:
            drew = drew or not torch.equal(before_on_cuda, torch.cuda.get_rng_state(device))
            torch.cuda.set_rng_state(before_on_cuda, device)
    if drew:
        raise RuntimeError(complaint)
