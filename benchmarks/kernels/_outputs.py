"""The frame of the output-Hessian kernels' cases: z and what stands beside it, and streaming as the bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import Case, nbytes

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
    "cuda": [
        *(((16384, classes), 1) for classes in (1024, 32000, 50304)),
        ((4096, 128256), 1),
        ((8, 2048, 4096), 1),
    ],
}
ELEMENT_PROBLEMS = {"cpu": [(2048, 2048), (8192, 10)], "cuda": [(16384, 32000)]}

Form = Callable[..., Tensor]

_INDUCTOR = "on torch 2.13 the code that torch.compile makes of it looks up an index out of bounds and aborts"


def logits(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype) * 3


def weights(z: Tensor, dim: int | None) -> Tensor:
    """One for each position, or for each output where there are no classes."""
    like = z if dim is None else z.select(dim, 0)
    return torch.rand(like.shape, device=z.device).to(z.dtype)


def stream(z: Tensor, *others: Tensor) -> Tensor:
    """Reads what is as large as z and writes one, into a fresh result, as the kernel does."""
    large = [x for x in others if x.dim() > z.dim()]
    return torch.add(z, large[0][0]) if large else torch.neg(z)


def _case(
    problem: str,
    inputs: tuple[Tensor, ...],
    forms: tuple[Form, Form, Form],
    bounds: dict[str, Form],
) -> Case:
    kernel, plain, exact = forms
    z = inputs[0]
    return Case(
        problem=problem,
        inputs=inputs,
        kernel=kernel,
        plain=plain,
        exact=exact,
        flops=10.0 * z.numel(),
        traffic=float(nbytes(*inputs) + nbytes(z)),
        bounds={"bound: one stream": stream, **bounds},
    )


def product(kernel: Form, plain: Form, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Cases of a kernel (z, vectors, w, dim) with one vector."""
    for shape, dim in SOFTMAX_PROBLEMS[device]:
        z = logits(shape, device, dtype)
        u = torch.randn(1, *shape, device=device, dtype=dtype)
        eager = partial(plain, dim=dim)
        forms = (partial(kernel, dim=dim), eager, eager)
        yield _case(f"z={list(shape)} dim={dim}", (z, u, weights(z, dim)), forms, {})


def sampled(
    kernel: Form, reference: Form, own: Form, device: str, dtype: torch.dtype, sweeps: bool
) -> Iterator[Case]:
    """Cases of a kernel (z, w, counters); ``own`` draws by torch's own generator, so its time alone compares."""
    problems = SOFTMAX_PROBLEMS[device] if sweeps else [(s, None) for s in ELEMENT_PROBLEMS[device]]
    for shape, dim in problems:
        z = logits(shape, device, dtype)
        at = {} if dim is None else {"dim": dim}
        name = f"z={list(shape)}" + ("" if dim is None else f" dim={dim}")
        forms = tuple(partial(form, seed=0, **at) for form in (kernel, reference, reference))
        bounds = {"torch's own numbers": partial(own, **at)}
        case = _case(name, (z, weights(z, dim)), (forms[0], forms[1], forms[2]), bounds)
        yield dataclasses.replace(case, uncompilable=_INDUCTOR) if sweeps else case


def elements(kernel: Form, plain: Form, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Cases of a kernel (z, u, w) that acts on each output alone, with one vector."""
    for shape in ELEMENT_PROBLEMS[device]:
        z = logits(shape, device, dtype)
        u = torch.randn(1, *shape, device=device, dtype=dtype)
        forms = (kernel, plain, plain)
        yield _case(f"z={list(shape)}", (z, u, weights(z, None)), forms, {})
