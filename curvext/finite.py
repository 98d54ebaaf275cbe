"""Checks for nan and inf in inputs and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvext import _extension

_native = getattr(_extension.module, "all_finite", None)


class NotFiniteError(ValueError):
    """An answer contains nan or inf."""


def is_finite(t: Tensor) -> bool:
    """Whether all entries are finite, without a temporary."""
    return all_finite([t])


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries of some tensors are finite."""
    found = None if _native is None else _native(list(tensors))
    return all(map(_is_finite, tensors)) if found is None else bool(found)


def _is_finite(t: Tensor) -> bool:
    if t.numel() == 0:
        return True
    t = torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach()
    # on CUDA one launch gives both extremes, and a dot product is limited to 2³¹ values
    if not t.is_cuda and t.is_contiguous() and t.dtype in (torch.float32, torch.float64):
        flat = t.view(-1)
        if math.isfinite(torch.dot(flat, flat).item()):
            return True  # else nan, inf, or an overflow of the squares
    low, high = torch.aminmax(t)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def finite_answer(answer: Tensor, where: str, always: bool = False) -> Tensor:
    """Returns ``answer`` if it is finite, and raises otherwise.

    Args:
        answer: the tensor to check.
        where: names the quantity in the message.
        always: whether to check on CUDA too, which synchronises the device.

    Raises:
        NotFiniteError: it contains nan or inf.
    """
    looked_at = always or answer.device.type == "cpu"
    if looked_at and answer.is_floating_point() and not is_finite(answer):
        raise NotFiniteError(
            f"{where} contains nan or inf, though parameters, data and output are finite: the derivative of some "
            "operation is infinite at these values (sqrt or norm at 0, log or pow at 0) or overflows. Add a small "
            "constant inside of it, or work in float64"
        )
    return answer
