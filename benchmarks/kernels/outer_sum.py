"""outer_sum beside its plain PyTorch form: g scaled, and one product, for each k."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import outer_sum

# N, S, I, O, K
PROBLEMS = {
    "cpu": [
        (4096, 1, 1024, 1024, 1),
        (4096, 1, 1024, 1024, 8),
        (64, 8, 512, 512, 1),
        (64, 64, 512, 512, 1),
        (64, 64, 512, 512, 8),
        (16, 128, 1024, 1024, 1),
        (16, 128, 1024, 1024, 16),
    ],
    "cuda": [
        (8192, 1, 4096, 4096, 1),
        (256, 128, 1024, 1024, 1),
        (256, 128, 1024, 1024, 16),
        (8, 1024, 4096, 4096, 1),
    ],
}


def eager(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    return torch.stack([(g * w[..., None, None]).flatten(0, 2).T @ a.flatten(0, 1) for w in c])


def accuracy(result: Tensor, a: Tensor, g: Tensor, c: Tensor) -> float:
    """Largest error beside the largest value, against float64."""
    exact = eager(a.double(), g.double(), c.double())
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for N, S, I, O, K in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        c = torch.randn(K, 1, N, device=device, dtype=dtype)
        calls = {
            "kernel": lambda a=a, g=g, c=c: outer_sum(a, g, c),
            "eager": lambda a=a, g=g, c=c: eager(a, g, c),
        }
        times = interleaved(calls, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "outer_sum",
            "problem": f"N={N} S={S} I={I} O={O} K={K}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "times eager": times["eager"].median / kernel,
            "of shortest": times["eager"].shortest / times["kernel"].shortest,
            "GFLOP/s": 2e-9 * K * N * S * I * O / kernel,
            "error": accuracy(outer_sum(a, g, c), a, g, c),
        }
