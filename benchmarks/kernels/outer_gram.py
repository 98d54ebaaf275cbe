"""outer_gram beside its plain PyTorch form, the product of the written-out per-sample gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import outer_gram

# N, S, I, O; the Gram matrix of one batch with itself
PROBLEMS = {
    "cpu": [(512, 1, 512, 512), (64, 4, 512, 512), (64, 64, 512, 512), (128, 64, 128, 128)],
    "cuda": [(2048, 1, 1024, 1024), (256, 8, 1024, 1024), (256, 128, 1024, 1024)],
}


def eager(a: Tensor, g: Tensor) -> Tensor:
    gradients = (g.mT @ a).flatten(1)
    return gradients @ gradients.T


def accuracy(result: Tensor, a: Tensor, g: Tensor) -> float:
    """Largest error beside the largest value, against float64."""
    exact = outer_gram(a.double(), g.double(), a.double(), g.double())
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(N, S, O, device=device, dtype=dtype)
        calls = {
            "kernel": lambda a=a, g=g: outer_gram(a, g, a, g),
            "eager": lambda a=a, g=g: eager(a, g),
        }
        times = interleaved(calls, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "outer_gram",
            "problem": f"N={N} S={S} I={I} O={O}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "times eager": times["eager"].median / kernel,
            "of shortest": times["eager"].shortest / times["kernel"].shortest,
            "error": accuracy(outer_gram(a, g, a, g), a, g),
        }
