"""softmax_hessian_mm beside eager PyTorch and beside the machine's streaming bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from curvext.kernels import softmax_hessian_mm

# shape of z, class dimension
PROBLEMS = {
    "cpu": [
        ((2048, 2048), 1),
        ((256, 50304), 1),
        ((2048, 2048), 0),
        ((4, 2048, 512), 1),
        ((50304, 256), 0),
        ((8192, 10), 1),
    ],
    "cuda": [((16384, classes), 1) for classes in (1024, 32000, 50304)] + [((8, 2048, 4096), 1)],
}


def eager(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    product = p * u[0]
    return w.unsqueeze(dim) * (product - p * product.sum(dim, keepdim=True))


def accuracy(z: Tensor, u: Tensor, w: Tensor, dim: int) -> float:
    """Largest error beside the largest value, against float64."""
    exact = eager(z.double(), u.double(), w.double(), dim)
    result = softmax_hessian_mm(z, u, w, dim)[0]
    return ((result - exact).abs().max() / exact.abs().max()).item()


def measure(device: str, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, object]]:
    for shape, dim in PROBLEMS[device]:
        z = torch.randn(shape, device=device, dtype=dtype) * 3
        u = torch.randn(1, *shape, device=device, dtype=dtype)
        w = torch.rand(z.sum(dim).shape, device=device).to(dtype)
        calls = {
            "kernel": lambda z=z, u=u, w=w, dim=dim: softmax_hessian_mm(z, u, w, dim),
            "eager": lambda z=z, u=u, w=w, dim=dim: eager(z, u, w, dim),
            # reads two, writes one, into a fresh result, as the kernel does
            "stream": lambda z=z, u=u: torch.add(z, u[0]),
        }
        times = interleaved(calls, rounds, device)
        kernel = times["kernel"].median
        yield {
            "kernel": "softmax_hessian_mm",
            "problem": f"z={list(shape)} dim={dim}",
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": kernel * 1e3,
            "times eager": times["eager"].median / kernel,
            "of streaming": times["stream"].median / kernel,
            "of shortest": times["stream"].shortest / times["kernel"].shortest,
            "GB/s": 3e-9 * z.numel() * z.element_size() / kernel,
            "error": accuracy(z, u, w, dim),
        }
