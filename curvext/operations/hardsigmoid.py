"""Hardsigmoid, for which PyTorch has no second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.operations.alternative import Replaced
from curvext.operations.flow import elementwise
from curvext.operations.node import symmetric
from curvext.operations.operation import Operation


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Hardsigmoid by ``hardtanh``, which has one."""
    return (torch.nn.functional.hardtanh(input, -3.0, 3.0) + 3.0) / 6.0


def _composed() -> Replaced:
    return Replaced((torch.nn.functional.hardsigmoid, torch._C._nn.hardsigmoid), _hardsigmoid)


OPERATIONS = {
    "HardsigmoidBackward0": Operation(
        tangent=symmetric,
        flow=elementwise,
        once_differentiable=True,
        alternatives={"twice": _composed, "traced": _composed},
    ),
}
