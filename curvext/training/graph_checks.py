"""Refuses graphs of losses whose samples have no gradients of their own."""

from __future__ import annotations

from torch import Tensor, nn

from curvext.graph.autograd_graph import LEAF, Graph, leaf_variable
from curvext.operations.node import Saved
from curvext.operations.table import operation
from curvext.torch_internals.modules import BatchNorm

_WITHOUT = "; without norms, squares and a function of norms this graph can be used as it is"


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
        here, saved = operation(name), Saved(node)
        if here.opaque is not None:
            kind = name.removeprefix("torch::autograd::")
            raise ValueError(f"losses: {kind}: {here.opaque}{_WITHOUT}")
        if here.batch_statistics is not None and len(losses) > 1 and here.batch_statistics(saved):
            raise ValueError(
                f"losses: {_owner(name, module)} is in training mode and normalises by the statistics of the batch, "
                "so that losses[n] depends on other samples and its gradient is not its own; call .eval() on it, or "
                f"use GroupNorm or LayerNorm{_WITHOUT}"
            )
        if here.sparse is not None and here.sparse(saved):
            raise ValueError(
                f"losses: {name}: the gradient of an embedding with sparse=True is sparse, and per-sample quantities "
                f"are computed densely; pass sparse=False{_WITHOUT}"
            )


def _owner(name: str, module: nn.Module | None) -> str:
    members = [] if module is None else list(module.named_modules())
    for path, m in members:
        if isinstance(m, BatchNorm) and (m.training or m.running_mean is None):
            return f"{path!r} ({type(m).__name__})"
    return name
