"""softmax_hessian_mm: H_ℓ u of cross-entropy; its floor is three passes over a tensor: read z, read u, write."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import Case
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
        ((8192, 64), 1),
    ],
    "cuda": [
        *(((16384, classes), 1) for classes in (1024, 32000, 50304)),
        ((4096, 128256), 1),
        ((8, 2048, 4096), 1),
    ],
}


def plain(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    p = torch.softmax(z, dim)
    product = p * u[0]
    return (w.unsqueeze(dim) * (product - p * product.sum(dim, keepdim=True))).unsqueeze(0)


def by_autograd(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    """The second derivative of the loss, as other libraries take it."""
    leaf = z.detach().requires_grad_()
    value = (w * torch.logsumexp(leaf, dim)).sum()
    first = torch.autograd.grad(value, leaf, create_graph=True)[0]
    return torch.autograd.grad(first, leaf, u[0])[0].unsqueeze(0)


def stream(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Reads two and writes one, into a fresh result, as the kernel does."""
    return torch.add(z, u[0])


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for shape, dim in PROBLEMS[device]:
        z = torch.randn(shape, device=device, dtype=dtype) * 3
        u = torch.randn(1, *shape, device=device, dtype=dtype)
        w = torch.rand(z.sum(dim).shape, device=device).to(dtype)
        yield Case(
            problem=f"z={list(shape)} dim={dim}",
            inputs=(z, u, w),
            kernel=partial(softmax_hessian_mm, dim=dim),
            plain=partial(plain, dim=dim),
            exact=partial(plain, dim=dim),
            flops=10.0 * z.numel(),
            traffic=3.0 * z.numel() * z.element_size(),
            rivals={"autograd": partial(by_autograd, dim=dim)},
            bounds={"bound: one stream": stream},
        )
