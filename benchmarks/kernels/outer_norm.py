"""outer_norm beside its plain PyTorch forms: through the inner products of positions, and through [N,O,I]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import outer_norm

# N, S, I, O
PROBLEMS = {
    "cpu": [
        (4096, 1, 1024, 1024),
        (64, 8, 512, 512),
        (64, 64, 512, 512),
        (16, 128, 1024, 1024),
        (64, 256, 64, 128),
    ],
    "cuda": [(8192, 1, 4096, 4096), (256, 128, 1024, 1024), (8, 1024, 4096, 4096)],
}


def by_positions(a: Tensor, g: Tensor) -> Tensor:
    return ((a @ a.mT) * (g @ g.mT)).sum((2, 3))


def by_gradients(a: Tensor, g: Tensor) -> Tensor:
    return (g.mT @ a).square().sum((2, 3))


def by_rows(a: Tensor, g: Tensor) -> Tensor:
    return (a.square().sum(2) * g.square().sum(3)).squeeze(2)


def forms(a: Tensor, g: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The plain forms that the problem leaves room for."""
    if a.shape[1] == 1:
        return {"rows": lambda: by_rows(a, g)}
    found = {"positions": lambda: by_positions(a, g)}
    if a.shape[0] * a.shape[2] * g.shape[3] < 1 << 29:
        found["gradients"] = lambda: by_gradients(a, g)
    return found


def accuracy(result: Tensor, a: Tensor, g: Tensor) -> float:
    """Largest error beside the largest value, against float64."""
    exact = (by_rows if a.shape[1] == 1 else by_positions)(a.double(), g.double())
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        eager = forms(a, g)
        times = interleaved({"kernel": lambda a=a, g=g: outer_norm(a, g), **eager}, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "outer_norm",
            "problem": f"N={N} S={S} I={I} O={O}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "times eager": min(times[name].median for name in eager) / kernel,
            "of shortest": min(times[name].shortest for name in eager) / times["kernel"].shortest,
            "error": accuracy(outer_norm(a, g), a, g),
        }
