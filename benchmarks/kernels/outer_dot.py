"""outer_dot beside its plain PyTorch form: a product with each matrix, and the inner products of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import outer_dot

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


def eager(a: Tensor, g: Tensor, W: Tensor) -> Tensor:
    return torch.stack([((a @ w.T) * g).sum((2, 3)) for w in W], 2)


def accuracy(result: Tensor, a: Tensor, g: Tensor, W: Tensor) -> float:
    """Largest error beside the largest value, against float64."""
    exact = eager(a.double(), g.double(), W.double())
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for N, S, I, O, K in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        W = torch.randn(K, O, I, device=device, dtype=dtype)
        calls = {
            "kernel": lambda a=a, g=g, W=W: outer_dot(a, g, W),
            "eager": lambda a=a, g=g, W=W: eager(a, g, W),
        }
        times = interleaved(calls, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "outer_dot",
            "problem": f"N={N} S={S} I={I} O={O} K={K}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "times eager": times["eager"].median / kernel,
            "of shortest": times["eager"].shortest / times["kernel"].shortest,
            "GFLOP/s": 2e-9 * K * N * S * I * O / kernel,
            "error": accuracy(outer_dot(a, g, W), a, g, W),
        }
