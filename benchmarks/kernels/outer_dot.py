"""outer_dot: the first half of F v; the plain form is a product with each matrix, and inner products of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_dot

# N, S, I, O, K
PROBLEMS = {
    "cpu": [
        (4096, 1, 1024, 1024, 1),
        (64, 64, 512, 512, 1),
        (4096, 1, 1024, 1024, 8),
        (64, 8, 512, 512, 1),
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


def plain(a: Tensor, g: Tensor, W: Tensor) -> Tensor:
    return torch.stack([((a @ w.T) * g).sum((2, 3)) for w in W], 2)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for N, S, I, O, K in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        W = torch.randn(K, O, I, device=device, dtype=dtype)
        # each of K products, or each sample's gradient formed once where that is fewer
        fewest = min(2.0 * K * N * S * I * O, 2.0 * N * (S + K) * I * O)
        yield Case(
            problem=f"N={N} S={S} I={I} O={O} K={K}",
            inputs=(a, g, W),
            kernel=outer_dot,
            plain=plain,
            exact=plain,
            flops=fewest,
            traffic=nbytes(a, g, W) + K * N * a.element_size(),
        )
