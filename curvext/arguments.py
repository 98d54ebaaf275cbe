"""Checks of single arguments: a valid one is returned as a plain number, an invalid one named in the error."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def as_integer(
    where: str, value: Any, least: float = -math.inf, most: float = math.inf, why: str = ""
) -> int:
    """``value`` as an int: anything with ``__index__`` but a bool, NumPy's integers among them.

    Args:
        where: function and argument, for the message: "eigsh: k".
        value: the argument.
        least, most: the range.
        why: a reason for the range.

    Raises:
        ValueError: it is no integer, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        wanted = "an integer"
        if math.isfinite(most):
            wanted = f"{least}..{most}"
        elif math.isfinite(least):
            wanted += f" of at least {least}"
        reason = f" ({why})" if why else ""
        raise ValueError(f"{where}: expected {wanted}{reason}, got {value!r}")
    return number


def as_choice(where: str, value: Any, choices: Iterable[str]) -> str:
    """``value``, one of some words.

    Raises:
        ValueError: it is none of them.
    """
    words = list(choices)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{where}: expected one of {', '.join(map(repr, words))}, got {value!r}")
    return value


def as_seed(where: str, value: Any) -> int:
    """``value`` as a seed of a ``torch.Generator``; of an integer of more than 64 bits the last 64."""
    seed = as_integer(where, value)
    return seed if -(2**63) <= seed < 2**64 else seed % 2**64


def as_number(
    where: str, value: Any, wanted: str, fits: Callable[[float], bool] = math.isfinite
) -> float:
    """``value`` as a float: any real number, NumPy's and tensors of one element among them.

    Args:
        where: function and argument, for the message: "cg: damping".
        value: the argument.
        wanted: what is expected, in words.
        fits: whether a number is such; false for nan.

    Raises:
        TypeError: it is no real number.
        ValueError: it does not fit.
    """
    try:
        if isinstance(value, (str, bytes)):  # float would read digits
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{where}: expected {wanted}, got {value!r}") from None
    if not fits(number):
        raise ValueError(f"{where}: expected {wanted}, got {value!r}")
    return number


def from_array(where: str, array: Any) -> Tensor:
    """A NumPy array of real numbers as a tensor on a copy: torch takes none that is read-only or runs backwards.

    Raises:
        TypeError: it holds something else.
    """
    import numpy as np

    array = np.array(array, order="C")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where}: expected real numbers, got an array of {array.dtype}")
    return torch.from_numpy(array)


def check_dense(where: str, value: Any) -> None:
    """Raises a TypeError unless ``value`` is a tensor in strided memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(
            f"{where}: expected a dense tensor, got one of layout {value.layout}; use .to_dense()"
        )


def check_risk(where: str, risk: Any, names: Sequence[str]) -> None:
    """Raises a TypeError unless ``risk`` has the methods and attributes of an EmpiricalRisk that are needed."""
    missing = [name for name in names if not hasattr(risk, name)]
    if missing:
        raise TypeError(
            f"{where}: risk must have the methods of EmpiricalRisk; {type(risk).__name__} has no "
            + ", ".join(missing)
        )
