"""The keyword arguments that all operators and functions share: visible to editors, and checked by name."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from curvext.problem import Problem

P = ParamSpec("P")
R = TypeVar("R")


class _Shared(TypedDict, total=False):
    forward: Callable[[nn.Module, Any], Tensor] | None
    target: Callable[[Any], Any] | None
    reduction: str | None
    check_finite: bool
    progress: bool
    chunk_outputs: int | None
    compile: bool | str
    process_group: Any
    max_batches: int | None


class Options(_Shared, total=False):
    """The keyword arguments of operators and of :class:`curvext.EmpiricalRisk`, which says what each means."""

    dtype: torch.dtype | None


class FunctionOptions(_Shared, total=False):
    """The keyword arguments of the plain functions, which have their own ``dtype`` and keep nothing by default."""

    cache: bool | str | int


_KEYWORDS = {
    name: parameter
    for name, parameter in inspect.signature(Problem.__init__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}
_KEYWORDS["cache"] = inspect.Parameter(
    "cache", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool | str | int"
)


def spelled_out(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function with ``**options``: its signature lists them, and its error names an unknown one.

    The error of a constructor names the class that the user called, not the one that defines it.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    own = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [*own, *(p for name, p in _KEYWORDS.items() if name not in signature.parameters)]
    known = [p.name for p in shown]

    @functools.wraps(function)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name not in known:
                method = function.__name__ == "__init__" and args
                owner = type(args[0]).__name__ if method else function.__name__
                raise TypeError(_message(owner, name, [k for k in known if k != "self"]))
        return function(*args, **keywords)

    checked.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return checked


def _message(owner: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{owner}: there is no argument {name!r}{meant} It takes {', '.join(known)}"
