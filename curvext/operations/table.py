"""The table of all operations, by the names of their nodes."""

from __future__ import annotations

from curvext.operations import (
    arithmetic,
    attention,
    broadcasting,
    convolution,
    cumulative,
    elementwise,
    embedding,
    gelu,
    hardsigmoid,
    indexing,
    layer_norm,
    linear_algebra,
    loss_functions,
    matmul,
    normalisation,
    opaque,
    pooling,
    rearranging,
    recurrent,
    reductions,
    softmax,
    views,
    weight_norm,
)
from curvext.operations.operation import Operation

_FILES = (
    arithmetic,
    attention,
    broadcasting,
    convolution,
    cumulative,
    elementwise,
    embedding,
    gelu,
    hardsigmoid,
    indexing,
    layer_norm,
    linear_algebra,
    loss_functions,
    matmul,
    normalisation,
    opaque,
    pooling,
    rearranging,
    recurrent,
    reductions,
    softmax,
    views,
    weight_norm,
)
#: an operation without rules
_UNKNOWN = Operation()


def merged(tables: list[dict[str, Operation]]) -> dict[str, Operation]:
    """Merges several tables, which may not share a name."""
    found: dict[str, Operation] = {}
    for table in tables:
        if twice := found.keys() & table.keys():
            raise ValueError(f"operations: {sorted(twice)}: two files claim these nodes")
        found |= table
    return found


OPERATIONS = merged([file.OPERATIONS for file in _FILES])


def operation(name: str) -> Operation:
    """The operation whose node has this name."""
    return OPERATIONS.get(name, _UNKNOWN)
