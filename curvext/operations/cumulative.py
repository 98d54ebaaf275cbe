"""Cumulative sums, products and extrema, and others along one dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.operations.alternative import Replaced
from curvext.operations.flow import local, saved_dim
from curvext.operations.operation import Operation


def _logcumsumexp(input: Tensor, dim: int, *, out: Tensor | None = None) -> Tensor | None:
    """y_i = log Σ_{j ≤ i} exp x_j, the sums of 2, 4, 8 … neighbours joined; None where that is not defined."""
    if out is not None or input.ndim == 0 or not input.is_floating_point():
        return None
    y, step = input.movedim(dim, 0), 1
    while step < len(y):
        earlier, later = y[:-step], y[step:]
        # log(e^a + e^b) = b + softplus(a − b), whose derivatives do not overflow
        joined = later + torch.nn.functional.softplus(earlier - later, threshold=50)
        y, step = torch.cat([y[:step], joined]), 2 * step
    return y.movedim(0, dim)


def _composed() -> Replaced:
    """PyTorch differentiates the backward pass of ``logcumsumexp`` by logarithms of 0."""
    return Replaced((torch.logcumsumexp, Tensor.logcumsumexp), _logcumsumexp)


_ALONG_DIM = local(saved_dim)

OPERATIONS = {
    **{
        f"{name}Backward0": Operation(flow=_ALONG_DIM)
        for name in ("Cummax", "Cummin", "Cumprod", "Cumsum", "FftC2C", "FftC2R", "FftR2C", "Glu")
    },
    "LogcumsumexpBackward0": Operation(
        flow=_ALONG_DIM,
        alternatives=dict.fromkeys(("linearised", "doubled", "twice", "traced"), _composed),
    ),
}
