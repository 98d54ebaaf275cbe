"""outer_cov: weighted second moments of rows; the plain form is one product of the rows with their weighted copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_cov

# M, D
PROBLEMS = {
    "cpu": [(512, 785), (2048, 1025), (16384, 289), (16384, 577)],
    "cuda": [(8192, 4097), (65536, 1025), (262144, 577)],
}


def plain(x: Tensor, w: Tensor) -> Tensor:
    return x.T @ (w.unsqueeze(1) * x)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for M, D in PROBLEMS[device]:
        x = torch.randn(M, D, device=device, dtype=dtype)
        w = torch.rand(M, device=device, dtype=dtype)
        yield Case(
            problem=f"M={M} D={D}",
            inputs=(x, w),
            kernel=outer_cov,
            plain=plain,
            exact=plain,
            flops=1.0 * M * D * (D + 1),
            traffic=nbytes(x, w) + D * D * x.element_size(),
        )
