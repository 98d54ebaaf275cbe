"""What a model returns: the tensor in it, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from curvext.finite import is_finite


def tensor_of(output: Any) -> Tensor:
    """The output itself, or its ``.logits``; raises a TypeError where neither is a tensor."""
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping) and "logits" in output:
            output = output["logits"]
        else:
            output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"model: the output is a {type(output).__name__} without .logits; "
            "pass forward=lambda model, batch: ... that returns one tensor"
        )
    return output


def check_output(output: Tensor) -> None:
    """Raises a ValueError or TypeError unless an output has rows of finite floating point numbers."""
    if output.ndim == 0:
        raise ValueError("model: the output is a scalar; expected one row per sample (dimension 0)")
    if not output.is_floating_point():
        hint = (
            "; return torch.view_as_real(output), or abs, real or imag"
            if output.is_complex()
            else ""
        )
        raise TypeError(
            f"model: the output has dtype {output.dtype}; floating point is needed{hint}"
        )
    if not is_finite(output):
        hint = ""
        if bool(torch.isneginf(output).any()) and not bool(output.isnan().any()):
            large = "-1e9" if torch.finfo(output.dtype).max > 1e9 else "-1e4"
            hint = (
                f"; where classes are masked, {large} in place of -inf gives the same softmax: "
                f"masked_fill(mask, {large}), or forward=lambda model, batch: model(batch[0]).clamp(min={large})"
            )
        raise ValueError(f"model: the output {list(output.shape)} contains nan or inf{hint}")


def check_rows(output: Tensor, target: Any) -> None:
    """Raises a ValueError unless output and target have the same number of samples."""
    if isinstance(target, Tensor) and target.ndim > 0 and target.shape[0] != output.shape[0]:
        raise ValueError(
            f"data: the output has {output.shape[0]} samples (dimension 0), the target {target.shape[0]}"
        )
