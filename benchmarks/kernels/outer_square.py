"""outer_square beside one plain GEMM of the same FLOPs, and beside PyTorch's way through [N,O,I]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import outer_square

# N, S, I, O
PROBLEMS = {
    "cpu": [
        (512, 1, 784, 1024),
        (4096, 1, 1024, 1024),
        (64, 4, 512, 512),
        (64, 16, 512, 512),
        (64, 64, 256, 256),
        (16, 64, 1024, 1024),
        (16, 256, 1024, 1024),
        (32, 128, 512, 512),
        (8, 1024, 512, 512),
    ],
    "cuda": [(256, 128, 1024, 1024), (8, 1024, 4096, 4096), (8192, 1, 4096, 4096)],
}


def eager(a: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(g[0].mT, a).square_().sum(0)


def accuracy(result: Tensor, a: Tensor, g: Tensor) -> float:
    """Largest error beside the largest value, against float64."""
    exact = torch.zeros(result.shape, dtype=torch.float64, device=a.device)
    for n in range(a.shape[0]):
        exact += (g[0, n].double().T @ a[n].double()) ** 2
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        calls = {
            "kernel": lambda a=a, g=g: outer_square(a, g),
            "gemm": lambda a=a, g=g: g.flatten(0, 2).T @ a.flatten(0, 1),
        }
        if N * O * I * 4 < 1 << 31:
            calls["eager"] = lambda a=a, g=g: eager(a, g)
        times = interleaved(calls, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "outer_square",
            "problem": f"N={N} S={S} I={I} O={O}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "ratio to GEMM": kernel / times["gemm"].median,
            "ratio of shortest": times["kernel"].shortest / times["gemm"].shortest,
            "times eager": times["eager"].median / kernel if "eager" in times else None,
            "GFLOP/s": 2e-9 * N * S * I * O / kernel,
            "error": accuracy(outer_square(a, g), a, g),
        }
