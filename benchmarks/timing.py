"""Medians of interleaved rounds: what is compared runs side by side, so that a busy machine slows all alike."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from curvext import _extension


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the rounds, its quartiles, and the shortest."""

    median: float
    lower: float
    upper: float
    shortest: float


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int = 15, device: str = "cpu"
) -> dict[str, Timing]:
    """Times each call once per round, in turn, after two rounds of warm-up."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds + 2):
        for name, call in calls.items():
            seconds = _seconds(call, device)
            if done >= 2:
                samples[name].append(seconds)
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4)
    return Timing(median, lower, upper, min(times))


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":")[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def environment(device: str) -> dict[str, object]:
    """Hardware, versions and commit, which every figure is kept with."""
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "extension": _extension.build_info(),
        "commit": commit(),
    }
