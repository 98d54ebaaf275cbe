"""outer_square: diagonals, Σ_n (Σ_s g a)²; the plain form goes through [N,O,I]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_square

# N, S, I, O
PROBLEMS = {
    "cpu": [
        (4096, 1, 1024, 1024),
        (64, 64, 256, 256),
        (512, 1, 784, 1024),
        (64, 4, 512, 512),
        (64, 16, 512, 512),
        (16, 64, 1024, 1024),
        (16, 256, 1024, 1024),
        (8, 1024, 512, 512),
    ],
    "cuda": [(256, 128, 1024, 1024), (8, 1024, 4096, 4096), (8192, 1, 4096, 4096)],
}
#: values of [N,O,I] beyond which the plain form is not tried
MOST_VALUES = 1 << 29


def plain(a: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(g[0].mT, a).square().sum(0)


def by_squares(a: Tensor, g: Tensor) -> Tensor:
    return (g[0, :, 0] ** 2).T @ a[:, 0] ** 2


def one_gemm(a: Tensor, g: Tensor) -> Tensor:
    """One product of the same FLOPs: another result, but what this one would cost at best."""
    return g.flatten(0, 2).T @ a.flatten(0, 1)


def formed(a: Tensor, g: Tensor) -> Tensor:
    """The per-sample gradients alone, [N,O,I], neither squared nor summed."""
    return torch.bmm(g[0].mT, a)


def backpack_form(a: Tensor, g: Tensor) -> Tensor:
    """The contraction that BackPACK 1.7.1 hands to einsum, the squares of S = 1 apart."""
    return torch.einsum("nsi,nsj,nti,ntj->ij", g[0], a, g[0], a)


def exact(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros(g.shape[3], a.shape[2], dtype=a.dtype, device=a.device)
    for n in range(a.shape[0]):
        total += (g[0, n].T @ a[n]) ** 2
    return total


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        fits = S > 1 and N * O * I < MOST_VALUES
        form = plain if fits else by_squares if S == 1 else None
        yield Case(
            problem=f"N={N} S={S} I={I} O={O}",
            inputs=(a, g),
            kernel=outer_square,
            plain=form,
            exact=by_squares if S == 1 else exact,
            flops=2.0 * N * S * I * O,
            traffic=nbytes(a, g) + O * I * a.element_size(),
            rivals={"BackPACK's einsum": backpack_form} if S > 1 and N * S * S < 1 << 13 else {},
            bounds={
                "bound: one GEMM": one_gemm,
                **({"bound: [N,O,I] alone": formed} if fits and device == "cuda" else {}),
            },
        )
