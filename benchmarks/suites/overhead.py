"""The suite ``overhead``: the library's own work, on networks so small that it decides.

Every quantity is measured as the first call of a new operator, on the next batch of a known structure, and on what is
kept, where that differs; in gradients of the same run, in microseconds for each parameter tensor, and in two counts
that are the same on every machine: Python calls inside the package, and operations dispatched by PyTorch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import curvext as cx
from benchmarks.models.networks import SMALL, Network, build
from benchmarks.models.quantities import LIBRARIES, ask, missing
from benchmarks.peers import Entry
from benchmarks.record import Record, Row
from benchmarks.timing import interleaved

Call = Callable[[], object]
GRADIENT = "gradient"
#: quantities of other libraries that stand beside
BESIDE = ("diag F_emp", "diag G", "norms", "G v", "H v")
#: exact diagonals of G take one backward pass for each output of a sample: not of language models
_OUTPUTS = 64


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = tuple(SMALL)
    rounds: int = 41
    budget: float = 40.0


FULL = Effort()
QUICK = Effort(("mlp-tiny", "lenet"), rounds=5, budget=1.0)


def calls_of(network: Network) -> dict[str, Call]:
    """Every way to ask for every quantity."""
    model, loss, batch = network.model, network.loss, network.batch
    v = ask(network).v
    kept = cx.EmpiricalRisk(model, loss, batch)
    fresh = cx.EmpiricalRisk(model, loss, batch, cache=False)
    parameters = list(model.parameters())

    def gradient() -> object:
        return torch.autograd.grad(loss(model(batch[0]), batch[1]), parameters)

    def first(operator: str) -> Call:
        return lambda: getattr(cx.EmpiricalRisk(model, loss, batch), operator)() @ v

    calls: dict[str, Call] = {GRADIENT: gradient}
    calls["value"] = fresh.value
    calls["diag F_emp, first"] = lambda: cx.fisher_diagonal(model, loss, batch)
    calls["diag F_emp, next batch"] = fresh.empirical_fisher().diagonal
    calls["norms, first"] = lambda: cx.per_sample_gradient_norms(model, loss, batch)
    calls["norms, next batch"] = fresh.empirical_fisher().gradient_norms
    if not isinstance(loss, cx.CausalLMLoss) and batch[1].max() < _OUTPUTS:
        calls["diag G, first"] = lambda: cx.ggn_diagonal(model, loss, batch)
    for letter, operator in (("G", "ggn"), ("H", "hessian"), ("F_emp", "empirical_fisher")):
        calls[f"{letter} v, first"] = first(operator)
        on_next, on_kept = getattr(fresh, operator)(), getattr(kept, operator)()
        calls[f"{letter} v, next batch"] = lambda A=on_next: A @ v
        calls[f"{letter} v, kept"] = lambda A=on_kept: A @ v
    return calls


def python_calls(call: Call) -> int:
    """How many functions of the package one call runs; comprehensions are not counted, as they depend on Python."""
    root, count = str(Path(cx.__file__).parent), 0

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(root)
            and not code.co_name.endswith("comp>")
        ):
            count += 1

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def dispatched(call: Call) -> int:
    """How many operations PyTorch dispatches in one call, those that operations call among them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it says when it starts and stops
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(
        event.count
        for event in seen.key_averages()
        if event.key.startswith(("aten::", "curvext::"))
    )


def peers_of(network: Network, record: Record) -> dict[str, Call]:
    """What other libraries take for the same, where they are installed and can."""
    calls: dict[str, Call] = {}
    problem = ask(network)
    for library in LIBRARIES:
        if library.LIBRARY in ("curvext", "PyTorch"):
            continue
        reason = missing(library)
        if reason is not None:
            record.failed(reason, network=network.name, library=library.LIBRARY)
            continue
        for entry in library.entries():
            if entry.quantity in BESIDE and entry.mode == "eager":
                _add(calls, entry, problem, network, record)
    return calls


def _add(
    calls: dict[str, Call], entry: Entry, problem: Any, network: Network, record: Record
) -> None:
    name = f"{entry.quantity}, {entry.library}"
    try:
        call = entry.make(problem)
        call()
    except Exception as failure:  # whatever a library raises is what is reported
        record.failed(failure, network=network.name, quantity=name)
        return
    calls[name] = call


def run(record: Record, device: str, effort: Effort, keep: Callable[[Row], None]) -> None:
    """All quantities of all networks."""
    for name in effort.networks:
        network = build(name, device)
        own = calls_of(network)
        calls: Mapping[str, Call] = {**own, **peers_of(network, record)}
        timings = interleaved(calls, effort.rounds, device, effort.budget)
        unit, tensors = timings[GRADIENT].median, len(list(network.model.parameters()))
        for quantity, timing in timings.items():
            row: Row = {"network": name, "quantity": quantity, "milliseconds": 1e3 * timing.median}
            row |= {"gradients": timing.median / unit, "lower": timing.lower / unit}
            row |= {"upper": timing.upper / unit, "rounds": timing.rounds}
            row["microseconds for each parameter"] = 1e6 * timing.median / tensors
            if quantity in own:
                row["Python calls"] = python_calls(calls[quantity])
                row["operations"] = dispatched(calls[quantity])
            record.rows.append(row)
            keep(row)
