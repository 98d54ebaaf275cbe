"""Comparison with a float64 oracle under an a-priori rounding bound."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext import _extension


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def runs_cuda_sources(tensor: Tensor) -> bool:
    """Whether the kernels of csrc/cuda take this tensor: on a GPU, or where tools/cuda_emulation.py runs them."""
    emulated = (_extension.build_info() or {}).get("cuda") == "emulated"
    return tensor.is_cuda or emulated


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
    """Raises unless |actual - expected| <= bound elementwise; NaN never passes.

    Args:
        actual: the result under test.
        expected: the oracle, float64.
        bound: the largest error that rounding can cause, float64, same shape.
        what: names the case in the message.
    """
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    error = (actual.double() - expected).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} values beyond the rounding bound; first at {at}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r} within {bound[at].item():.3e}"
        )


def slice_of_larger(tensor: Tensor) -> Tensor:
    """The same values inside a larger buffer, surrounded by NaN, so that a read beside them shows."""
    buffer = torch.full(
        [n + 3 for n in tensor.shape], float("nan"), dtype=tensor.dtype, device=tensor.device
    )
    view = buffer[tuple(slice(1, n + 1) for n in tensor.shape)]
    view.copy_(tensor)
    return view
