"""What this machine's PyTorch can do by itself: a test asks, and is skipped, and so counted, where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def needs_plain(what: str, model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Skips the test unless plain PyTorch can compute an output of ``model`` and its gradient.

    Some processors lack kernels that others have: oneDNN's bfloat16 LSTM needs AVX-512, others half precision.

    Args:
        what: names it in the reason.
        model: the model.
        run: its output, by PyTorch alone.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        output = run()
        torch.autograd.grad(output.float().sum(), parameters, allow_unused=True)
    except RuntimeError as missing:  # NotImplementedError is one
        reason = str(missing).splitlines()[0]
        pytest.skip(f"plain PyTorch cannot run {what} here: {reason}")
