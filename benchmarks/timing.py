"""Medians of interleaved rounds: what is compared runs side by side, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

WARM_UP = 2
#: seconds from which on a call is not made again: it is long beside what it finds
LONG_CALL = 1.0


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


#: clock cycles that the device is kept busy while a call is launched, about 2 ms: several operators each
_HEAD_START = 4_000_000


def device_seconds_of(call: Callable[[], object]) -> float:
    """One call on CUDA from its first kernel to its last: what launching costs is hidden behind a delay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    device: str = "cpu",
    budget: float | None = None,
    known: float | None = None,
    launched: bool = False,
    again: bool = False,
    fewest: int = 3,
) -> dict[str, Timing]:
    """Times each call once per round, in turn, after two rounds of warm-up.

    With a budget in seconds there are fewer rounds where they would take longer, but never fewer than ``fewest``.
    ``known`` is how long a round takes, where all calls were made before: then there is no warm-up.
    With ``launched`` the time on a CUDA device alone counts, not that of the launch. With ``again`` the second of two
    calls in a row counts: what it finds of memory and caches is then what it left itself, as in a loop of products
    or of training steps, and not what its neighbour in the round left.
    """
    on_device = launched and device == "cuda"
    clock = device_seconds_of if on_device else partial(seconds_of, device=device)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    if known is None:
        for _ in range(WARM_UP):
            known = sum(seconds_of(call, device) for call in calls.values())
    if budget is not None:
        one_round = (2 if again else 1) * max(known or 0.0, 1e-9)
        rounds = max(fewest, min(rounds, int(budget / one_round)))
    for _ in range(rounds):
        for name, call in calls.items():
            seconds = clock(call)
            if again and seconds < LONG_CALL:
                seconds = clock(call)
            samples[name].append(seconds)
    return {name: summary(times) for name, times in samples.items()}


def summary(times: list[float]) -> Timing:
    """Median and quartiles of at least two samples."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper, min(times), len(times))
