"""softmax_residual: the derivative of cross-entropy at class indices; its floor is two passes: read z, write."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import Case, _outputs, nbytes
from curvext.kernels import softmax_residual


def plain(z: Tensor, w: Tensor, target: Tensor, dim: int) -> Tensor:
    residual = torch.softmax(z, dim) * w.unsqueeze(dim)
    return residual.scatter_add_(dim, target.unsqueeze(dim), -w.unsqueeze(dim))


def kernel(z: Tensor, w: Tensor, target: Tensor, dim: int) -> Tensor:
    return softmax_residual(z, target, w, dim=dim)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for shape, dim in _outputs.SOFTMAX_PROBLEMS[device]:
        z = _outputs.logits(shape, device, dtype)
        w = _outputs.weights(z, dim)
        target = torch.randint(shape[dim], w.shape, device=device)
        eager = partial(plain, dim=dim)
        yield Case(
            problem=f"z={list(shape)} dim={dim}",
            inputs=(z, w, target),
            kernel=partial(kernel, dim=dim),
            plain=eager,
            exact=eager,
            flops=8.0 * z.numel(),
            traffic=2.0 * nbytes(z),
            bounds={"bound: one stream": _outputs.stream},
        )
