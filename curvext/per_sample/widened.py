"""Records in float64, where rounding of products in their own dtype would be amplified."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.per_sample.recorded import Records


def in_float64(records: Records) -> Records:
    """The same per-sample gradients, whose products are computed in float64; twice the memory or more."""
    wide: Records = _wide(records)
    return wide


def _wide(item: Any) -> Any:
    """``item`` with every tensor of real numbers in float64, as far as records and uses hold them."""
    if isinstance(item, torch.nn.Parameter):  # only its shape is used
        return item
    if isinstance(item, Tensor):
        return item.detach().double() if item.is_floating_point() else item
    if isinstance(item, torch.dtype):  # the dtype of sums
        return torch.float64
    if isinstance(item, (Records, StructuredGradient)):
        twin = copy.copy(item)
        vars(twin).update({name: _wide(value) for name, value in vars(item).items()})
        return twin
    if isinstance(item, dict):
        return {key: _wide(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_wide(value) for value in item]
    if type(item) is tuple:  # a parameter's number, an arrangement and a use
        return tuple(_wide(value) for value in item)
    return item
