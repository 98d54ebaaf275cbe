"""The kernels' workspace as a knob of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from curvext import _extension

#: bytes; 0 is each kernel's own choice, 4 KiB cuts what a test can afford into several pieces
WORKSPACES = (0, 4096)


@contextmanager
def workspace(size: int) -> Iterator[None]:
    """Every kernel takes pieces of this many bytes; 0 is its own choice."""
    if _extension.module is None:
        yield
        return
    _extension.module.cpu.use_workspace(size)
    try:
        yield
    finally:
        _extension.module.cpu.use_workspace(0)
