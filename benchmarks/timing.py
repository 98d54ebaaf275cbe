"""Medians of interleaved rounds: what is compared runs side by side, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the rounds, its quartiles, the shortest, and how many rounds there were."""

    median: float
    lower: float
    upper: float
    shortest: float
    rounds: int


def seconds_of(call: Callable[[], object], device: str) -> float:
    """One call, with the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    device: str = "cpu",
    budget: float | None = None,
    known: float | None = None,
) -> dict[str, Timing]:
    """Times each call once per round, in turn, after two rounds of warm-up.

    With a budget in seconds there are fewer rounds where they would take longer, but never fewer than three.
    ``known`` is how long a round takes, where all calls were made before: then there is no warm-up.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    if known is None:
        for _ in range(WARM_UP):
            known = sum(seconds_of(call, device) for call in calls.values())
    if budget is not None:
        rounds = max(3, min(rounds, int(budget / max(known or 0.0, 1e-9))))
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(seconds_of(call, device))
    return {name: summary(times) for name, times in samples.items()}


def summary(times: list[float]) -> Timing:
    """Median and quartiles of at least two samples."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper, min(times), len(times))
