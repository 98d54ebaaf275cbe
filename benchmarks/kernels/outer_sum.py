"""outer_sum: the second half of F v; the plain form is g scaled, and one product, for each k."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_sum

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


def plain(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    return torch.stack([(g * w[..., None, None]).flatten(0, 2).T @ a.flatten(0, 1) for w in c])


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for N, S, I, O, K in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        c = torch.randn(K, 1, N, device=device, dtype=dtype)
        # each of K products, or each sample's gradient formed once where that is fewer
        fewest = min(2.0 * K * N * S * I * O, 2.0 * N * (S + K) * I * O)
        yield Case(
            problem=f"N={N} S={S} I={I} O={O} K={K}",
            inputs=(a, g, c),
            kernel=outer_sum,
            plain=plain,
            exact=plain,
            flops=fewest,
            traffic=nbytes(a, g, c) + K * O * I * a.element_size(),
        )
