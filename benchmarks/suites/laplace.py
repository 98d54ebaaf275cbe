"""The suite ``laplace``: the diagonals that laplace-torch asks its backends for, ours beside its own.

Each backend has a process of its own, in which a gradient of the same loss alternates with it; memory is the peak of
that process, above what model and data take. A backend that needs more than its share of time or memory ends there,
and the reason is kept.
"""

from __future__ import annotations

import importlib
import os
import resource
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.machine import installed
from benchmarks.models.networks import Network, cnn
from benchmarks.record import Record, Row
from benchmarks.suites.memory import ALLOCATOR, Peak, in_fresh_process
from benchmarks.timing import interleaved

GRADIENT = "gradient"
#: bytes that a process may take: some backends form [N, C, P], and the machine has other work
MOST_MEMORY = 8 << 30
#: row → (module, class, keywords of the backend)
BACKENDS: dict[tuple[str, str], tuple[str, str, dict[str, object]]] = {
    ("diag G", "curvext"): ("curvext.laplace", "CurvextGGN", {}),
    ("diag G", "curvlinops, the default"): ("laplace.curvature", "CurvlinopsGGN", {}),
    ("diag G", "BackPACK"): ("laplace.curvature", "BackPackGGN", {}),
    ("diag G", "asdl"): ("laplace.curvature", "AsdlGGN", {}),
    ("diag G, one drawn label", "curvext"): (
        "curvext.laplace",
        "CurvextGGN",
        {"stochastic": True},
    ),
    ("diag G, one drawn label", "curvlinops, the default"): (
        "laplace.curvature",
        "CurvlinopsGGN",
        {"stochastic": True},
    ),
    ("diag G, one drawn label", "BackPACK"): (
        "laplace.curvature",
        "BackPackGGN",
        {"stochastic": True},
    ),
    ("diag G, one drawn label", "asdl"): ("laplace.curvature", "AsdlGGN", {"stochastic": True}),
    ("diag F_emp", "curvext"): ("curvext.laplace", "CurvextEF", {}),
    ("diag F_emp", "curvlinops, the default"): ("laplace.curvature", "CurvlinopsEF", {}),
    ("diag F_emp", "BackPACK"): ("laplace.curvature", "BackPackEF", {}),
    ("diag F_emp", "asdl"): ("laplace.curvature", "AsdlEF", {}),
}


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    samples: tuple[int, ...] = (8, 64)
    rounds: int = 9
    budget: float = 30.0
    #: seconds for one process
    limit: float = 120.0


FULL = Effort()
QUICK = Effort((8,), rounds=3, budget=1.0, limit=30.0)


def network(samples: int) -> Network:
    """The benchmark's CNN with a batch of so many, C = 10."""
    torch.manual_seed(0)
    return cnn(samples)


def backend_of(quantity: str, library: str, model: nn.Module) -> Callable[..., object]:
    """The method ``diag`` of a backend for the model."""
    where, name, keywords = BACKENDS[quantity, library]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others say on import is not ours
        kind = getattr(importlib.import_module(where), name)
    if library == "BackPACK":
        from backpack import extend

        model = extend(model)
    model.output_size = 10
    return kind(model, "classification", **keywords).diag


def measure(quantity: str, library: str, samples: int, effort: Effort) -> list[Row]:
    """Time in gradients, and the peak of memory, of one backend."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, resource.RLIM_INFINITY))
    at = network(samples)
    x, y = at.batch
    loss = nn.CrossEntropyLoss(reduction="sum")
    parameters = list(at.model.parameters())

    def gradient() -> object:
        return torch.autograd.grad(loss(at.model(x), y), parameters)

    if quantity == GRADIENT:
        calls: dict[str, Callable[[], object]] = {GRADIENT: gradient}
    else:
        diag = backend_of(quantity, library, network(samples).model)
        calls = {GRADIENT: gradient, "diag": lambda: diag(x, y, N=samples)}
    last = list(calls)[-1]
    calls[last]()
    peak = Peak("cpu")
    peak.start()
    calls[last]()  # the first met the graph, and loaded what it needs
    megabytes = peak.megabytes()
    timings = interleaved(calls, effort.rounds, "cpu", effort.budget, again=True)
    unit, timing = timings[GRADIENT].median, timings[last]
    row: Row = {"milliseconds": 1e3 * timing.median, "gradients": timing.median / unit}
    row |= {"lower": timing.lower / unit, "upper": timing.upper / unit, "rounds": timing.rounds}
    return [row | {"megabytes": megabytes}]


def run(record: Record, device: str, effort: Effort, keep: Callable[[Row], None]) -> None:
    """All backends for each number of samples."""
    if device != "cpu" or not os.access("/proc/self/clear_refs", os.W_OK):
        raise RuntimeError("benchmarks laplace: measures the CPU, on Linux")
    if not installed("laplace-torch"):
        record.failed("not installed: pip install laplace-torch", quantity="diagonals")
        return
    os.environ.update(ALLOCATOR)
    for samples in effort.samples:
        for quantity, library in ((GRADIENT, "torch"), *BACKENDS):
            where = {"network": f"cnn, N = {samples}", "quantity": quantity, "library": library}
            told = in_fresh_process(measure, quantity, library, samples, effort, limit=effort.limit)
            if isinstance(told, str):
                record.failed(told, **where)
                continue
            row = {**where, "mode": "eager", **told[0]}
            record.rows.append(row)
            keep(row)
