"""outer_gram: inner products of per-sample gradients; the plain form multiplies them written out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_gram

# N, S, I, O; the Gram matrix of one batch with itself
PROBLEMS = {
    "cpu": [(512, 1, 512, 512), (64, 64, 512, 512), (64, 4, 512, 512), (128, 64, 128, 128)],
    "cuda": [(2048, 1, 1024, 1024), (256, 8, 1024, 1024), (256, 128, 1024, 1024)],
}


def kernel(a: Tensor, g: Tensor) -> Tensor:
    return outer_gram(a, g, a, g)


def plain(a: Tensor, g: Tensor) -> Tensor:
    gradients = (g.mT @ a).flatten(1)
    return gradients @ gradients.T


def by_rows(a: Tensor, g: Tensor) -> Tensor:
    return (a[:, 0] @ a[:, 0].T) * (g[:, 0] @ g[:, 0].T)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(N, S, O, device=device, dtype=dtype)
        fewest = min(2.0 * (N * S) ** 2 * (I + O), 2.0 * (2 * N * S + N * N) * O * I)
        yield Case(
            problem=f"N={N} S={S} I={I} O={O}",
            inputs=(a, g),
            kernel=kernel,
            plain=by_rows if S == 1 else plain,
            exact=by_rows if S == 1 else plain,
            flops=fewest,
            traffic=nbytes(a, g) + N * N * a.element_size(),
        )
