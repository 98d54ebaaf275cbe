"""From the public call to the kernel: how many functions and files a reader follows, counted as Python runs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import curvext as cx
from curvext import _extension

ROOT = str(Path(cx.__file__).parent)
#: comprehensions are functions of their own in some versions of Python, and none in others
_INLINE = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"}


@dataclass
class Trace:
    """The calls inside the package."""

    calls: int = 0
    depth: int = 0
    functions: set[tuple[str, str]] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def traced(run) -> Trace:
    found, stack = Trace(), 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal stack
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or code.co_name in _INLINE:
            return
        if event == "call":
            stack += 1
            found.calls += 1
            found.depth = max(found.depth, stack)
            found.functions.add((code.co_filename, code.co_name))
            found.files.add(code.co_filename)
        elif event == "return":
            stack -= 1

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture
def risk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    data = (torch.randn(16, 20), torch.randint(0, 4, (16,)))
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


#: operator → the most that a product on what is kept may take: depth, functions, files, calls
LIMITS = {
    "ggn": (11, 88, 37, 115),
    "hessian": (12, 86, 37, 113),
    "empirical_fisher": (11, 92, 38, 146),
}


@pytest.mark.skipif(_extension.module is None, reason="Python reads in the place of native code")
@pytest.mark.parametrize("name", LIMITS)
def test_a_kept_product_is_short(risk, name):
    operator = getattr(risk, name)()
    v = torch.randn(operator.size)
    expected = operator @ v
    got = None

    def product():
        nonlocal got
        got = operator @ v

    trace = traced(product)
    assert torch.equal(got, expected)
    depth, functions, files, calls = LIMITS[name]
    assert trace.depth <= depth, trace.depth
    assert len(trace.functions) <= functions, len(trace.functions)
    assert len(trace.files) <= files, len(trace.files)
    assert trace.calls <= calls, trace.calls


def test_the_trace_sees_a_deeper_call(risk, monkeypatch):
    operator = risk.ggn()
    v = torch.randn(operator.size)
    operator @ v
    before = traced(lambda: operator @ v)
    inner = type(operator)._columns
    path = Path(ROOT) / "planted.py"
    space: dict[str, Any] = {"inner": inner}
    exec(
        compile("def planted(self, columns):\n    return inner(self, columns)", str(path), "exec"),
        space,
    )
    monkeypatch.setattr(type(operator), "_columns", space["planted"])
    after = traced(lambda: operator @ v)
    assert after.depth == before.depth + 1 and len(after.files) == len(before.files) + 1
