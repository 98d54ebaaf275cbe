"""The one assertion on numbers: relative to the largest expected entry, and it raises."""

from __future__ import annotations

import torch
from torch import Tensor

#: agreement asked for, by dtype (CONTRACT 3.4)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_close(
    got: Tensor, expected: Tensor, what: str = "", tol: float | None = None, scale: float = 0.0
) -> None:
    """Raises unless max|got − expected| ≤ tol · max(max|expected|, scale).

    Args:
        got: the result under test, real floating point.
        expected: the oracle's answer, in float64 or the dtype of ``got``.
        what: names the quantity in the message.
        tol: relative tolerance; by default that of the dtype of ``got``.
        scale: the size of the terms where ``expected`` itself may be zero.
    """
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}")
    tol = TOLERANCE[got.dtype] if tol is None else tol
    if expected.numel() == 0:
        return
    got, expected = (
        got.detach().to("cpu", torch.float64),
        expected.detach().to("cpu", torch.float64),
    )
    error = float((got - expected).abs().max())
    size = max(float(expected.abs().max()), scale)
    if not error <= tol * size:  # so that nan fails
        raise AssertionError(
            f"{what}: error {error:.3e} of {size:.3e}, relative {error / (size or 1):.1e} > {tol:.0e}"
        )
