"""Gauss quadrature of an operator's spectral distribution, by Lanczos from random probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.lanczos import tridiagonalise
from curvext.algorithms.probes import Probes, check_finite
from curvext.algorithms.products import Products
from curvext.arguments import as_integer
from curvext.progress import Progress

#: up to so many rows the matrix is formed and decomposed where that takes no more products
DENSE_ROWS = 1024
#: Lanczos bases are held up to this many bytes, so that many probes share the passes over the data
_BASES = 1 << 30


@dataclass(frozen=True)
class Quadrature:
    """∫ f dμ ≈ Σ w f(θ) for μ = (1/P) Σ_i δ(λ_i), one rule for each probe, on the CPU in float64.

    Attributes:
        nodes: Ritz values θ, ``[m, s]``, ascending in each row.
        weights: squared first components of the eigenvectors of T, ``[m, s]``; each row adds to 1.
        errors: how far at most the nearest eigenvalue is from each node, ``[m, s]``.
        exact: the nodes are all P eigenvalues.
        size: P.
    """

    nodes: Tensor
    weights: Tensor
    errors: Tensor
    exact: bool
    size: int

    def by_probe(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Σ w f(θ) for each probe, ``[m]``; nodes without weight do not count, whatever f is there."""
        values = f(self.nodes)
        return torch.where(self.weights > 0, self.weights * values, 0.0).sum(1)

    def jackknife(self, samples: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """g of the samples' mean and its standard error.

        Args:
            samples: ``[m, q]``, one row for each probe.
            g: maps means ``[..., q]`` to ``[...]``.
        """
        count = len(samples)
        value = g(samples.mean(0))
        if self.exact:
            return value, torch.zeros_like(value)
        if count == 1:
            return value, torch.full_like(value, torch.inf)
        left_out = g((samples.sum(0) - samples) / (count - 1))
        spread = (left_out - left_out.mean(0)).square().sum(0)
        return value, (spread * (count - 1) / count).sqrt()


def quadrature(
    products: Products,
    probes: int,
    steps: int,
    seed: int,
    progress: bool = False,
    reorthogonalise: bool = True,
    checkpoint: str | PathLike[str] | None = None,
) -> Quadrature:
    """The quadrature by ``probes`` probes with ``steps`` products each, or by all eigenvalues where P is smaller.

    Raises:
        ValueError: ``probes`` or ``steps`` is no positive integer, P is 0, or A returns nan or inf.
    """
    probes = as_integer(f"{products.caller}: probes", probes, 1)
    steps = as_integer(f"{products.caller}: steps", steps, 1)
    stream = Probes(products, seed)
    if products.size == 0:
        raise ValueError(f"{products.caller}: A is 0 x 0: it has no spectrum")
    state = Checkpoint(
        checkpoint,
        products,
        probes=probes,
        steps=steps,
        seed=seed,
        reorthogonalise=bool(reorthogonalise),
    )
    with Progress(progress, probes * steps, products.caller) as bar:
        if products.size <= min(probes * steps, DENSE_ROWS):
            return _by_all(products)
        return _by_lanczos(products, probes, steps, stream, bar, reorthogonalise, state)


def _by_all(products: Products) -> Quadrature:
    matrix = products.dense()
    check_finite(products, matrix)
    values = torch.linalg.eigvalsh(matrix).cpu()
    weights = torch.full_like(values, 1 / products.size)
    errors = torch.zeros_like(values[None])
    return Quadrature(values[None], weights[None], errors, True, products.size)


def _by_lanczos(
    products: Products,
    probes: int,
    steps: int,
    stream: Probes,
    bar: Progress,
    reorthogonalise: bool,
    state: Checkpoint,
) -> Quadrature:
    held = products.vectors.share * min(steps, products.size) * products.working.itemsize
    group = max(1, _BASES // held if reorthogonalise else probes)
    group = 1 if state else group
    parts = [(state.numbers["alpha"], state.numbers["beta"])] if "alpha" in state.numbers else []
    done = sum(len(alpha) for alpha, _ in parts)
    stream.skip_signs(done)
    for first in range(done, probes, group):
        start = stream.signs(min(group, probes - first))
        T = tridiagonalise(products, start, min(steps, products.size), reorthogonalise)
        check_finite(products, T.alpha)
        parts.append((T.alpha.T.cpu(), T.beta.T.cpu()))
        if state:
            state.save(
                {
                    "alpha": torch.cat([alpha for alpha, _ in parts]),
                    "beta": torch.cat([beta for _, beta in parts]),
                }
            )
        bar.to(products.count)
    alpha, beta = (torch.cat(rows) for rows in zip(*parts, strict=True))
    matrices = alpha.diag_embed() + beta[:, :-1].diag_embed(1) + beta[:, :-1].diag_embed(-1)
    nodes, vectors = torch.linalg.eigh(matrices)
    weights = vectors[:, 0].square()
    # what a Krylov space that ended is padded with has no weight but rounding
    weights = torch.where(weights > torch.finfo(torch.float64).eps ** 2, weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    errors = beta[:, -1:] * vectors[:, -1].abs()
    return Quadrature(nodes, weights, errors, False, products.size)
