"""What is known of every operation, by the name of its node."""

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
#: of an operation of which nothing is known
_UNKNOWN = Operation()


def merged(tables: list[dict[str, Operation]]) -> dict[str, Operation]:
    """One table of several, which may not share a name."""
    found: dict[str, Operation] = {}
    for table in tables:
        if twice := found.keys() & table.keys():
            raise ValueError(f"operations: {sorted(twice)}: two files claim these nodes")
        found |= table
    return found


OPERATIONS = merged([file.OPERATIONS for file in _FILES])


def operation(name: str) -> Operation:
    """What is known of the operation whose node has this name."""
    return OPERATIONS.get(name, _UNKNOWN)
