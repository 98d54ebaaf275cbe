"""Nodes that stand for a whole region of the network and hide its operations."""

from __future__ import annotations

from curvext.operations.operation import Operation

_COMPILED = Operation(
    opaque="torch.compile made one node of the model, so that its parameters' uses are not seen; "
    "compute losses by the model as it was before (model._orig_mod)"
)
_CHECKPOINTED = Operation(
    opaque="reentrant activation checkpointing runs backward passes of its own; pass "
    "use_reentrant=False, or leave checkpointing out"
)

OPERATIONS = {
    "CheckpointFunctionBackward": _CHECKPOINTED,
    "CompiledFunctionBackward": _COMPILED,
    "torch::autograd::CheckpointFunctionBackward": _CHECKPOINTED,
    "torch::autograd::CompiledFunctionBackward": _COMPILED,
}
