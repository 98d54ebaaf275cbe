"""Algorithms on the data of several processes: all make the same call, and an error on one is an error on all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Number
from os import PathLike, fspath
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from curvext.algorithms.sharded_vectors import is_sharded
from curvext.results import Step

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

#: arguments that ranks may differ in
_VIEWS = ("progress",)
#: arguments that may be vectors, of which each rank has its own entries where the operator's are sharded
_VECTORS = ("b", "x0", "v0", "preconditioner")


def together(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """An algorithm whose first argument, an operator or a risk, may have a ``group`` of processes.

    The ranks compare the other arguments before it begins: with different seeds or numbers of steps they would
    diverge midway.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        subject = args[0] if args else kwargs.get(next(iter(signature.parameters)))
        group: Any = getattr(subject, "group", None)
        if group is None or group.alone:
            return function(*args, **kwargs)
        with group.guarded():
            text, vectors = _said(function.__name__, signature.bind(*args, **kwargs))
            with group.call(text, vectors):
                return function(*args, **kwargs)

    return called


def _said(name: str, bound: inspect.BoundArguments) -> tuple[str, list[Tensor]]:
    """A call in words, and the tensors among its arguments."""
    bound.apply_defaults()
    words, vectors = [], []
    sharded = is_sharded(bound.args[0])
    for key, value in list(bound.arguments.items())[1:]:
        if key in _VIEWS:
            continue
        if sharded and key in _VECTORS and isinstance(value, Tensor):
            words.append(f"{key}: {value.dtype}, {value.ndim} dimensions")
            continue
        if isinstance(value, Step):
            vectors.append(value.step.detach())
        if isinstance(value, Tensor):
            vectors.append(value.detach())
        words.append(_word(key, value))
    return f"{name}({type(bound.args[0]).__name__}, {', '.join(words)})", vectors


def _word(key: str, value: Any) -> str:
    if isinstance(value, PathLike):
        value = fspath(value)
    if value is None or isinstance(value, (Number, str, bytes)):
        return f"{key}={value!r}"
    if isinstance(value, Mapping):  # forms that lead to different messages later on
        kind = "DTensors" if any(hasattr(t, "placements") for t in value.values()) else "tensors"
        return f"{key}: {type(value).__name__} of {kind}"
    return f"{key}: {type(value).__name__}"
