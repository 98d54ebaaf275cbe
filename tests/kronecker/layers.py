"""Kronecker factors by another definition: loops over samples, vectors and positions, one sample at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from oracles import with_reduction
from torch import Tensor, nn

from curvext.losses import output_loss

#: a gradient below this share of the largest is one that rounding made of zero
_ZERO = 1e-9


@dataclass
class Uses:
    """The pairs of one layer: for each sample its positions' a, and for each vector their g."""

    a: list[list[Tensor]] = field(default_factory=list)  # [n][s] -> [I] or [I + 1]
    g: list[list[list[Tensor]]] = field(default_factory=list)  # [n][v][s] -> [O]


def vectors_of(posed, kind: str, seed: int = 0, samples: int = 1) -> list[list[Tensor]]:
    """For each sample the cotangents s_v of its output with M = Σ_nv (J_nᵀ s_v)(J_nᵀ s_v)ᵀ."""
    f, y, loss = posed.oracle.output.detach(), posed.y, posed.loss
    count = len(f)
    if kind == "mc":
        divisor = float(with_reduction(loss, "sum")(f, y) / loss(f, y))
        point = output_loss(loss, None).at(f, y)
        draws = [point.sampled(seed, k, 0) / (divisor * samples) ** 0.5 for k in range(samples)]
        return [[d[n] for d in draws] for n in range(count)]
    z = f.clone().requires_grad_()
    if kind == "empirical":
        summed = with_reduction(loss, "sum")
        factor = 1.0 if loss.reduction == "sum" else count**0.5 / float(summed(f, y) / loss(f, y))
        return [
            [torch.autograd.grad(summed(z[n : n + 1], y[n : n + 1]), z)[0][n] * factor]
            for n in range(count)
        ]
    hessian = posed.oracle.output_hessian().view(count, f[0].numel(), count, f[0].numel())
    found = []
    for n in range(count):
        values, vectors = torch.linalg.eigh(hessian[n, :, n])
        kept = [(s, v) for s, v in zip(values, vectors.T, strict=True) if s > 1e-13]
        found.append([(s.sqrt() * v).view_as(f[n]) for s, v in kept])
    return found


def uses_of(posed, layer: nn.Module, bias: bool, vectors: list[list[Tensor]]) -> Uses:
    """The pairs of ``layer``, recorded while each sample goes through the network alone."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module, inputs, output):
        calls.append((inputs[0].detach(), output))

    handle = layer.register_forward_hook(record)
    found = Uses()
    try:
        for n, columns in enumerate(vectors):
            calls.clear()
            output = posed.model(posed.x[n : n + 1])[0]
            ends = [end for _, end in calls]
            positions = [pairs_at(layer, inputs, end) for inputs, end in calls]
            found.a.append([a for call in positions for a, _ in call])
            if bias:
                found.a[-1] = [torch.cat([a, a.new_ones(1)]) for a in found.a[-1]]
            by_vector = []
            for v in columns:
                grads = torch.autograd.grad(output, ends, v, retain_graph=True)
                by_vector.append(
                    [
                        where(g)
                        for call, g in zip(positions, grads, strict=True)
                        for _, where in call
                    ]
                )
            found.g.append(by_vector)
    finally:
        handle.remove()
    return found


def pairs_at(
    layer: nn.Module, x: Tensor, output: Tensor
) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """For each position a, and where its g lies in the gradient at the output."""
    if isinstance(layer, nn.Linear):
        places = list(itertools.product(*map(range, x.shape[:-1])))
        return [(x[p], lambda g, p=p: g[p]) for p in places]
    if isinstance(layer, nn.Embedding):
        places = list(itertools.product(*map(range, x.shape)))
        eye = torch.eye(layer.num_embeddings, dtype=torch.float64)
        return [(eye[x[p]], lambda g, p=p: g[p]) for p in places if int(x[p]) != layer.padding_idx]
    places = itertools.product(*map(range, output.shape[2:]))
    return [(patch(layer, x[0], p), lambda g, p=p: g[(0, slice(None), *p)]) for p in places]


def patch(layer, x: Tensor, place: tuple[int, ...]) -> Tensor:
    """What the window sees of ``x`` [I, *spatial] at one place of the output, channel by channel."""
    window = list(itertools.product(*map(range, layer.kernel_size)))
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if mode != "constant":  # pads by itself, then convolves without
        x = nn.functional.pad(x[None], layer._reversed_padding_repeated_twice, mode)[0]
    values = x.new_zeros(x.shape[0], len(window))
    for k, offset in enumerate(window):
        source = []
        for d, (p, o) in enumerate(zip(place, offset, strict=True)):
            pad = 0 if mode != "constant" else layer.padding[d]
            if transposed:  # p = stride q − padding + dilation o
                q, rest = divmod(p + pad - layer.dilation[d] * o, layer.stride[d])
                source.append(q if rest == 0 else -1)
            else:
                source.append(p * layer.stride[d] - pad + layer.dilation[d] * o)
        if all(0 <= q < size for q, size in zip(source, x.shape[1:], strict=True)):
            values[:, k] = x[(slice(None), *source)]
    return values.flatten()


def of_group(uses: Uses, group: int, groups: int, bias: bool) -> Uses:
    """The pairs of one group of a convolution."""
    if groups == 1:
        return uses

    def a_of(a: Tensor) -> Tensor:
        body = a[:-1] if bias else a
        part = body.chunk(groups)[group]
        return torch.cat([part, a[-1:]]) if bias else part

    return Uses(
        [[a_of(a) for a in row] for row in uses.a],
        [[[g.chunk(groups)[group] for g in v] for v in row] for row in uses.g],
    )


def factors(uses: Uses, approx: str, positions: str = "reached") -> tuple[Tensor, Tensor]:
    """A and Γ by their definition."""
    size = max(float(g.abs().max()) for row in uses.g for v in row for g in v)
    a_sum: Tensor | float = 0.0
    g_sum: Tensor | float = 0.0
    count = 0
    for a, g in zip(uses.a, uses.g, strict=True):
        met = [
            positions == "all" or any(float(v[s].abs().max()) > _ZERO * size for v in g)
            for s in range(len(a))
        ]
        here = [s for s, m in enumerate(met) if m]
        if not here:
            continue
        if approx == "expand":
            a_sum = a_sum + sum(torch.outer(a[s], a[s]) for s in here)
            g_sum = g_sum + sum(torch.outer(v[s], v[s]) for v in g for s in here)
            count += len(here)
        else:
            mean = torch.stack([a[s] for s in here]).mean(0)
            a_sum = a_sum + torch.outer(mean, mean)
            totals = [torch.stack(v).sum(0) for v in g]
            g_sum = g_sum + sum(torch.outer(t, t) for t in totals)
            count += 1
    return a_sum / count, g_sum


def gradients(uses: Uses) -> list[Tensor]:
    """G_vn of every vector and sample, [O, I]."""
    return [
        sum(torch.outer(g_s, a_s) for g_s, a_s in zip(v, a, strict=True))
        for a, g in zip(uses.a, uses.g, strict=True)
        for v in g
    ]


def sides(uses: Uses) -> tuple[Tensor, Tensor]:
    """L and R."""
    every = gradients(uses)
    return sum(G @ G.T for G in every), sum(G.T @ G for G in every)
