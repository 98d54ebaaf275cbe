"""Calls every kernel a few times with awkward sizes, for tools that watch a process.

``python tools/direct_calls.py [device]``, which is "cuda" where none is named. compute-sanitizer slows a process by a
hundred times, so what it watches should be the kernels and little else: no test frame, one call for each kernel and
dtype, sizes that are no multiple of any tile. Each result is compared with the reference, loosely: what is looked for
is a wrong address, not a rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvext import kernels, reference

DTYPES = (torch.float32, torch.bfloat16)
N, V, S, I, O, K, C = 3, 2, 17, 37, 141, 2, 1031


def inputs(dtype: torch.dtype, device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(kernel, arguments) of every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    a, g, z, u = draw(N, S, I), draw(V, N, S, O), draw(N, C), draw(K, N, C)
    w = draw(N).abs()
    inner, u_inner = draw(N, 33, 5), draw(K, N, 33, 5)
    yield "outer_square", (a, g)
    yield "outer_square", (a[:, :1], g[:, :, :1])
    yield "outer_norm", (a, g)
    yield "outer_dot", (a, g, draw(K, O, I))
    yield "outer_sum", (a, g, draw(K, V, N))
    yield "outer_gram", (a, g[0], a[:2, :3], g[1, :2, :3])
    yield "outer_cov", (z, w)
    yield "softmax_hessian_mm", (z, u, w, 1)
    yield "softmax_hessian_mm", (inner, u_inner, inner[:, 0].abs(), 1)
    yield "softmax_root_mm", (z, u, w, 1)
    yield "softmax_root_t_mm", (z, u, w, 1)
    yield (
        "softmax_residual",
        (z, torch.randint(C, (N,), generator=generator).to(device), w, None, 1),
    )
    yield "softmax_sample", (z, w, 1, 0, 0, 1)
    yield "mse_hessian_mm", (z, u, z.abs())
    yield "mse_sample", (z, z.abs(), 1, 0, 0)
    yield "sigmoid_hessian_mm", (z, u, z.abs())
    yield "sigmoid_sample", (z, z.abs(), 1, 0, 0)


def check(name: str, arguments: tuple[Any, ...]) -> None:
    found = getattr(kernels, name)(*arguments).double()
    # 2^-7 is an error of bfloat16; draws at the edge between two classes may differ
    if name.endswith("_sample"):
        if not found.isfinite().all():
            raise AssertionError(f"{name}: a draw is not finite")
        return
    expected = getattr(reference, name)(*arguments).double()
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < 2.0**-6:
        raise AssertionError(f"{name}: {arguments[0].dtype}: relative error {error:.1e}")


def main(device: str) -> None:
    calls = [call for dtype in DTYPES for call in inputs(dtype, device)]
    for name, arguments in calls:
        check(name, arguments)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    check(*next(inputs(torch.float32, device)))
    torch.set_float32_matmul_precision(before)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(calls) + 1} calls on {device}: as the references have it")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
