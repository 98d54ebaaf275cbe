"""Layers for which the output is random, couples samples, or has no derivative."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from curvext.torch_internals.modules import BatchNorm, Dropout


def check_layers(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Raises a RuntimeError that names a layer which is random, mixes samples, or gives no derivative."""
    for module in modules:
        fault = _fault_of(module)
        if fault is not None:
            raise RuntimeError(f"model: {name_of(model, module)!r} {fault}")


def _fault_of(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, Dropout) and module.training and module.p > 0:
        return f"({kind}) is in training mode, so the risk is random; call model.eval()"
    if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
        cure = (
            "call model.eval()"
            if module.running_mean is not None
            else "it has no running statistics; build it with track_running_stats=True and call model.eval()"
        )
        return f"({kind}) normalises by the statistics of the batch, so there is no per-sample loss; {cure}"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        if module.max_norm is not None:
            return (
                "has max_norm, which rewrites its weight in the forward pass; renormalise once and "
                "set max_norm = None"
            )
        if module.scale_grad_by_freq:
            return (
                "has scale_grad_by_freq, so what PyTorch calls its gradient is not the derivative of the "
                "loss; set it to False"
            )
    return None


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module of the model."""
    return next(name for name, m in model.named_modules() if m is module)
