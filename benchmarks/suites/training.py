"""The suite ``training``: what ``curvext.backward`` adds to a training step, in gradients of the same run.

Each call is a forward pass, losses of all samples, and the backward pass. opacus' ghost clipping stands beside, which
takes two backward passes; and the peak of memory of each, in a process of its own.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

import curvext as cx
from benchmarks.models.networks import Network, build
from benchmarks.record import Record, Row
from benchmarks.suites.memory import ALLOCATOR, Peak, in_fresh_process
from benchmarks.timing import Timing, interleaved

GRADIENT = "gradient"


def clip(norms: Tensor) -> Tensor:
    """Weights that clip each sample's gradient to a norm of one."""
    return (1 / norms).clamp(max=1) / len(norms)


#: quantity → the options of :func:`curvext.backward`
QUANTITIES: dict[str, dict[str, object]] = {
    "gradient with weights": {},
    "gradient and norms": {"norms": True},
    "clipped gradient": {"weights": clip},
    "gradient and squares": {"squares": True},
}
OPACUS = "clipped gradient, opacus"


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = ("mlp", "cnn", "gpt")
    rounds: int = 15
    budget: float = 60.0
    #: seconds for one process that measures memory; none without
    limit: float | None = 120.0


FULL = Effort()
QUICK = Effort(("mlp",), rounds=3, budget=1.0, limit=None)


def losses_of(network: Network, output: Tensor) -> Tensor:
    """The loss of each sample, ``[N]``."""
    labels = network.batch[1]
    if isinstance(network.loss, cx.CausalLMLoss):
        output, labels = output[:, :-1].transpose(1, 2), labels[:, 1:]
    losses = F.cross_entropy(output, labels, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def step(network: Network, quantity: str) -> Callable[[], object]:
    """A training step without its optimizer."""
    model, x = network.model.train(), network.batch[0]
    if quantity == OPACUS:
        return _opacus(network)

    def call() -> object:
        model.zero_grad()
        losses = losses_of(network, model(x))
        if quantity == GRADIENT:
            return losses.mean().backward()
        return cx.backward(losses, model, **QUANTITIES[quantity])  # type: ignore[arg-type]

    return call


def _opacus(network: Network) -> Callable[[], object]:
    """Ghost clipping: norms by one backward pass, and one of the weighted losses."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = GradSampleModuleFastGradientClipping(copy.deepcopy(network.model).train())

    def call() -> object:
        model.zero_grad()
        model.enable_hooks()
        losses = losses_of(network, model(network.batch[0]))
        losses.mean().backward(retain_graph=True)
        weights = clip(model.get_norm_sample().detach())
        model.zero_grad()
        model.disable_hooks()
        return losses.backward(weights)

    return call


def peak_of(name: str, quantity: str, device: str) -> list[Row]:
    """The peak of one step above what model and data take."""
    full = build(name, device)
    call, peak = step(full, quantity), Peak(device)
    call()  # a loop meets its graph for the first time but once
    full.model.zero_grad()
    peak.start()
    call()
    return [{"megabytes": peak.megabytes()}]


def run(record: Record, device: str, effort: Effort, keep: Callable[[Row], None]) -> None:
    """All quantities of all networks."""
    quantities = [GRADIENT, *QUANTITIES, OPACUS]
    if importlib.util.find_spec("opacus") is None:
        record.failed("opacus is not installed", quantity=OPACUS)
        quantities.remove(OPACUS)
    for name in effort.networks:
        # Opacus makes new hooks in each step, after which the next step of ours looks at all hooks again: so it has
        # a network and a run of its own, beside a gradient of its own
        ours = [q for q in quantities if q != OPACUS]
        theirs = [q for q in quantities if q in (GRADIENT, OPACUS)]
        timed = _timed(record, name, ours, device, effort)
        if OPACUS in quantities:
            beside = _timed(record, name, theirs, device, effort)
            timed |= {q: cost for q, cost in beside.items() if q == OPACUS}
        peaks = _peaks(record, name, list(timed), device, effort)
        for quantity, (timing, unit) in timed.items():
            row: Row = {"network": name, "quantity": quantity, "milliseconds": 1e3 * timing.median}
            row |= {"gradients": timing.median / unit, "lower": timing.lower / unit}
            row |= {"upper": timing.upper / unit, "rounds": timing.rounds}
            if quantity in peaks and GRADIENT in peaks:
                row["megabytes"] = peaks[quantity]
                row["memory in gradients"] = peaks[quantity] / peaks[GRADIENT]
            record.rows.append(row)
            keep(row)


def _timed(
    record: Record, name: str, quantities: list[str], device: str, effort: Effort
) -> dict[str, tuple[Timing, float]]:
    """Quantities of one network in turn, and the median of a gradient in the same run."""
    network = build(name, device)
    calls: dict[str, Callable[[], object]] = {}
    for quantity in quantities:
        try:
            calls[quantity] = step(network, quantity)
            calls[quantity]()
        except Exception as failure:  # whatever a library raises is what is reported
            del calls[quantity]
            record.failed(failure, network=name, quantity=quantity)
    timings = interleaved(calls, effort.rounds, device, effort.budget, again=True)
    return {quantity: (t, timings[GRADIENT].median) for quantity, t in timings.items()}


def _peaks(
    record: Record, name: str, quantities: list[str], device: str, effort: Effort
) -> dict[str, float]:
    """Megabytes of each quantity, where memory is asked for and can be measured."""
    if effort.limit is None or (
        device == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK)
    ):
        return {}
    os.environ.update(ALLOCATOR)
    found: dict[str, float] = {}
    for quantity in quantities:
        told = in_fresh_process(peak_of, name, quantity, device, limit=effort.limit)
        if isinstance(told, str):
            record.failed(told, network=name, quantity=quantity, what="memory")
        else:
            found[quantity] = told[0]["megabytes"]
    return found
