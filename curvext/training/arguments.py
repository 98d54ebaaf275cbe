"""Checks of the arguments of ``backward``, which return them in the form in which they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums


def check_losses(losses: Any) -> None:
    """Raises a TypeError or ValueError unless ``losses`` is ``[N]``, finite, and has a graph."""
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses: expected a tensor [N], got {type(losses).__name__}")
    if losses.ndim != 1:
        cure = "; pass the losses of the samples, by reduction='none'" if losses.ndim == 0 else ""
        if losses.ndim > 1:
            cure = "; sum or average over all dimensions but that of the samples: losses.flatten(1).mean(1)"
        raise ValueError(f"losses: expected shape [N], got {list(losses.shape)}{cure}")
    if len(losses) == 0:
        raise ValueError("losses: empty; at least one sample is needed")
    if not losses.is_floating_point():
        raise TypeError(f"losses: expected real floating point, got {losses.dtype}")
    if not losses.requires_grad:
        raise ValueError(
            "losses: no graph leads from them to any parameter; compute them with gradients enabled, without detach"
        )
    if not bool(torch.isfinite(losses.detach()).all()):
        where = int((~torch.isfinite(losses.detach())).nonzero()[0])
        raise ValueError(
            f"losses: losses[{where}] is {losses[where].item()}; only finite losses have gradients. Leave such samples "
            "out, or set their loss to zero before the graph is made"
        )


def check_flags(**flags: Any) -> None:
    """Raises a TypeError unless all are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"backward: {name}: expected True or False, got {value!r}")


def check_dtype(dtype: Any) -> None:
    """Raises a TypeError unless it is None or a floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"backward: dtype: expected None or a floating dtype, got {dtype!r}")


def given_weights(weights: Any, losses: Tensor) -> Tensor:
    """Weights that are known beforehand, in the dtype of sums: 1/N, or those that were passed."""
    samples, dtype = len(losses), dtype_of_sums(losses.dtype)
    if weights is None:
        return torch.full((samples,), 1 / samples, dtype=dtype, device=losses.device)
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"weights: expected None, a tensor [{samples}] or a function of the norms, got {type(weights).__name__}"
        )
    return _fitting("weights", weights, losses, finite=True)


def weights_of(function: Callable[[Tensor], Tensor], norms: Tensor) -> Tensor:
    """The weights from a function of the norms; nan where a norm overflowed, so that GradScaler or the user sees it."""
    with torch.no_grad():
        weights = function(norms.clone())
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: the function gave {type(weights).__name__}, expected a tensor")
    usual = torch.isfinite(norms)
    everywhere = bool(usual.all())
    weights = _fitting("weights: the function's answer", weights, norms, finite=everywhere)
    return weights if everywhere else torch.where(usual, weights, torch.nan)


def _fitting(what: str, weights: Tensor, like: Tensor, finite: bool) -> Tensor:
    if weights.shape != like.shape:
        raise ValueError(f"{what}: expected shape {list(like.shape)}, got {list(weights.shape)}")
    if weights.device != like.device:
        raise ValueError(f"{what}: expected device {like.device}, got {weights.device}")
    if weights.is_complex() or weights.dtype is torch.bool:
        raise TypeError(f"{what}: expected real numbers, got {weights.dtype}")
    weights = weights.detach().to(dtype_of_sums(like.dtype))
    if finite and not bool(torch.isfinite(weights).all()):
        raise ValueError(f"{what}: contains nan or inf")
    return weights
