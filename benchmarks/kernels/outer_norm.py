"""outer_norm: ‖G_vn‖² beside its plain forms, through the inner products of positions and through [N,O,I]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes
from curvext.kernels import outer_norm

# N, S, I, O
PROBLEMS = {
    "cpu": [
        (4096, 1, 1024, 1024),
        (64, 64, 512, 512),
        (64, 8, 512, 512),
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


def ghost(a: Tensor, g: Tensor) -> Tensor:
    """The contractions that opacus 1.6.0 takes in ghost clipping."""
    if a.shape[1] == 1:
        rows = torch.einsum("ni,ni->n", g[0, :, 0], g[0, :, 0])
        return (rows * torch.einsum("nj,nj->n", a[:, 0], a[:, 0])).unsqueeze(0)
    gg = torch.einsum("nik,njk->nij", g[0], g[0])
    aa = torch.einsum("nik,njk->nij", a, a)
    return torch.einsum("nij,nij->n", gg, aa).unsqueeze(0)


def cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for N, S, I, O in PROBLEMS[device]:
        a = torch.randn(N, S, I, device=device, dtype=dtype)
        g = torch.randn(1, N, S, O, device=device, dtype=dtype)
        plain: Callable[..., Tensor] = by_rows if S == 1 else by_positions
        rivals: dict[str, Callable[..., Tensor]] = {"opacus' einsum": ghost}
        if S > 1 and N * I * O < 1 << 28:
            rivals["through [N,O,I]"] = by_gradients
        fewest = min(2 * S * S * (I + O), 2 * S * I * O) if S > 1 else 2 * (I + O)
        yield Case(
            problem=f"N={N} S={S} I={I} O={O}",
            inputs=(a, g),
            kernel=outer_norm,
            plain=plain,
            exact=plain,
            flops=float(N * fewest),
            traffic=nbytes(a, g) + N * a.element_size(),
            rivals=rivals,
        )
