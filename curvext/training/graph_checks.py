"""What a graph of losses must not hold for its samples to have gradients of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvext.graph.autograd_graph import LEAF, Graph, leaf_variable

_WITHOUT = "; without norms, squares and a function of norms this graph can be used as it is"
#: nodes that stand for a whole region of the network, and what to do about them
_CLOSED = {
    "CompiledFunctionBackward": "torch.compile made one node of the model, so that its parameters' uses are not seen; "
    "compute losses by the model as it was before (model._orig_mod)",
    "CheckpointFunctionBackward": "reentrant activation checkpointing runs backward passes of its own; pass "
    "use_reentrant=False, or leave checkpointing out",
}
_BATCH_NORMS = (
    "NativeBatchNormBackward0",
    "CudnnBatchNormBackward0",
    "MiopenBatchNormBackward0",
    "SyncBatchNormBackward",
)


def leaves_below(losses: Tensor) -> list[Tensor]:
    """The leaves that ``losses`` lead to."""
    graph = Graph(losses, [])
    return [
        leaf_variable(n) for n, name in zip(graph.nodes, graph.names, strict=True) if name == LEAF
    ]


def check(losses: Tensor, module: nn.Module | None) -> None:
    """Raises a ValueError that names the module or operation for which samples have no gradients of their own.

    Args:
        losses: ``[N]`` with their graph.
        module: to find the name in, if there is one.
    """
    graph = Graph(losses, [])
    for node, name in zip(graph.nodes, graph.names, strict=True):
        kind = name.removeprefix("torch::autograd::")
        if kind in _CLOSED:
            raise ValueError(f"losses: {kind}: {_CLOSED[kind]}{_WITHOUT}")
        if name in _BATCH_NORMS and len(losses) > 1 and _couples(node):
            raise ValueError(
                f"losses: {_owner(name, module)} is in training mode and normalises by the statistics of the batch, "
                "so that losses[n] depends on other samples and its gradient is not its own; call .eval() on it, or "
                f"use GroupNorm or LayerNorm{_WITHOUT}"
            )
        if "Embedding" in name and getattr(node, "_saved_sparse", False):
            raise ValueError(
                f"losses: {name}: the gradient of an embedding with sparse=True is sparse, and per-sample quantities "
                f"are computed densely; pass sparse=False{_WITHOUT}"
            )


def _couples(node: Any) -> bool:
    """Whether a batch norm uses statistics of the batch; instance norm is one of a single image of all channels."""
    if not getattr(node, "_saved_training", True):
        return False
    return not hasattr(node, "_saved_input") or node._saved_input.shape[0] > 1


def _owner(name: str, module: nn.Module | None) -> str:
    members = [] if module is None else list(module.named_modules())
    for path, m in members:
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            return f"{path!r} ({type(m).__name__})"
    return name
