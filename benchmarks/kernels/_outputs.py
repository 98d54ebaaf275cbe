"""The frame of the output-Hessian kernels' benchmarks: kernel, eager form and streaming, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.timing import interleaved

# shape of z, class dimension
SOFTMAX_PROBLEMS = {
    "cpu": [
        ((2048, 2048), 1),
        ((256, 50304), 1),
        ((2048, 2048), 0),
        ((4, 2048, 512), 1),
        ((50304, 256), 0),
        ((8192, 10), 1),
        ((8192, 64), 1),
    ],
    "cuda": [((16384, classes), 1) for classes in (1024, 32000, 50304)] + [((8, 2048, 4096), 1)],
}
ELEMENT_PROBLEMS = {"cpu": [(2048, 2048), (8192, 10)], "cuda": [(16384, 32000)]}

Form = Callable[..., Tensor]


def logits(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype) * 3


def weights(z: Tensor, dim: int | None) -> Tensor:
    """One for each position, or for each output where there are no classes."""
    like = z if dim is None else z.select(dim, 0)
    return torch.rand(like.shape, device=z.device).to(z.dtype)


def row(
    name: str,
    problem: str,
    kernel: Form,
    eager: Form,
    arguments: tuple[Tensor | int, ...],
    streamed: list[Tensor],
    rounds: int,
) -> dict[str, object]:
    """The figures of one problem. ``streamed`` are the tensors of z's size that the kernel must read."""
    z = streamed[0]
    calls = {
        "kernel": lambda: kernel(*arguments),
        "eager": lambda: eager(*arguments),
        # reads as much and writes one, into a fresh result, as the kernel does
        "stream": lambda: torch.add(z, streamed[-1]) if len(streamed) > 1 else torch.neg(z),
    }
    times = interleaved(calls, rounds, z.device.type)
    median = times["kernel"].median
    wide = tuple(
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
    )
    exact = kernel(*wide)
    return {
        "kernel": name,
        "problem": problem,
        "dtype": str(z.dtype).removeprefix("torch."),
        "milliseconds": median * 1e3,
        "times eager": times["eager"].median / median,
        "of streaming": times["stream"].median / median,
        "of shortest": times["stream"].shortest / times["kernel"].shortest,
        "GB/s": 1e-9 * (len(streamed) + 1) * z.numel() * z.element_size() / median,
        # against the same kernel in float64, which the tests hold to an oracle
        "error": ((kernel(*arguments) - exact).abs().max() / exact.abs().max()).item(),
    }


def product(
    name: str, kernel: Form, eager: Form, device: str, dtype: torch.dtype, rounds: int
) -> Iterator[dict[str, object]]:
    """A kernel (z, vectors, w, dim) with one vector."""
    for shape, dim in SOFTMAX_PROBLEMS[device]:
        z = logits(shape, device, dtype)
        u = torch.randn(1, *shape, device=device, dtype=dtype)
        arguments = (z, u, weights(z, dim), dim)
        problem = f"z={list(shape)} dim={dim}"
        yield row(name, problem, kernel, eager, arguments, [z, u[0]], rounds)


def sweep(
    name: str,
    kernel: Form,
    eager: Form,
    others: Callable[[Tensor, int], tuple[Tensor | int, ...]],
    device: str,
    dtype: torch.dtype,
    rounds: int,
) -> Iterator[dict[str, object]]:
    """A kernel of z alone, whose further arguments ``others(z, dim)`` makes."""
    for shape, dim in SOFTMAX_PROBLEMS[device]:
        z = logits(shape, device, dtype)
        problem = f"z={list(shape)} dim={dim}"
        yield row(name, problem, kernel, eager, (z, *others(z, dim), dim), [z], rounds)


def elements(
    name: str,
    kernel: Form,
    eager: Form,
    others: Callable[[Tensor], tuple[Tensor | int, ...]],
    device: str,
    dtype: torch.dtype,
    rounds: int,
) -> Iterator[dict[str, object]]:
    """A kernel that acts on each output alone."""
    for shape in ELEMENT_PROBLEMS[device]:
        z = logits(shape, device, dtype)
        arguments = (z, *others(z))
        streamed = [z, *(x[0] for x in arguments if isinstance(x, Tensor) and x.dim() > z.dim())]
        yield row(name, f"z={list(shape)}", kernel, eager, arguments, streamed, rounds)
