"""Measurements of curvature matrices that only need products: distances, spectra, and a timing.

Everything here works on any operator with ``@`` and ``to_scipy``; nothing forms a P×P matrix.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import curvext as cx


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of one matrix, ascending, and how well each pair solves A x = λ x.

    ``residuals`` are ‖A x − λ x‖ for unit x: an eigenvalue lies within that distance of λ.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor


@dataclass(frozen=True)
class Estimate:
    """A value estimated with random probes, and the standard error of the estimate."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


# ---------------------------------------------------- spectra


def largest(
    operator: cx.LinearOperator, k: int, seed: int, tolerance: float = 1e-3, krylov: int = 20
) -> Eigenvalues:
    """The k algebraically largest eigenvalues, by SciPy's Lanczos method on products.

    Args:
        operator: the matrix.
        k: how many.
        seed: of the starting vector.
        tolerance: relative to each eigenvalue; the residuals tell what was reached.
        krylov: vectors kept before the method restarts.
    """
    start = np.random.default_rng(seed).standard_normal(operator.size)
    ncv = min(operator.size, max(krylov, 2 * k + 1))
    values, vectors = eigsh(operator.to_scipy(), k=k, which="LA", tol=tolerance, v0=start, ncv=ncv)
    order = np.argsort(values)
    values, basis = values[order], torch.from_numpy(vectors[:, order].copy())
    residuals = (operator @ basis - basis * torch.from_numpy(values)).norm(dim=0)
    return Eigenvalues(values, residuals.numpy(), basis)


def smallest(operator: cx.LinearOperator, k: int, top: float, seed: int) -> Eigenvalues:
    """The k algebraically smallest eigenvalues; ``top`` is the largest one.

    They are the largest of ``top·I − A``. Lanczos stops at an error relative to the eigenvalue it
    looks for, which for an eigenvalue near zero would ask for digits that rounding does not leave;
    after the shift the error is relative to ``top``.
    """
    shifted = top * cx.Identity(operator.size) - operator
    flipped = largest(shifted, k, seed, tolerance=1e-4, krylov=40)
    return Eigenvalues(
        top - flipped.values[::-1], flipped.residuals[::-1].copy(), flipped.vectors.flip(1)
    )


# ---------------------------------------------------- distances


@dataclass(frozen=True)
class Distances:
    """How far apart the matrices are, in units of ‖G‖ (Frobenius norms)."""

    hessian_to_ggn: Estimate
    ggn_to_empirical: Estimate
    trace_ratio: Estimate  # tr F_emp / tr F
    squared_norm_of_hessian: float


def distances(risk: cx.EmpiricalRisk, basis: Tensor, probes: int, seed: int) -> Distances:
    """‖H − G‖/‖G‖, ‖G − F_emp‖/‖G‖ and tr F_emp / tr F from products with random probes.

    For any matrix A and orthonormal Q [P, k], with Π = I − Q Qᵀ and random signs z,

        ‖A‖² = ‖A Q‖² + E‖A Π z‖²,    tr A = tr QᵀA Q + E[zᵀ Π A Π z].

    The first terms are exact, so the chance is left to what Q does not span: with the leading
    eigenvectors as Q, little. Standard errors are the jackknife's, over the probes.

    Args:
        risk: the risk; softmax cross-entropy, so that G is the Fisher matrix.
        basis: Q, the leading eigenvectors of G.
        probes: number of random vectors.
        seed: of the probes.
    """
    signs = torch.Generator().manual_seed(seed)
    z = torch.randint(0, 2, (basis.shape[0], probes), generator=signs).to(basis.dtype) * 2 - 1
    z -= basis @ (basis.T @ z)
    both = torch.cat([basis, z], 1)
    ggn, curvature = risk.ggn() @ both, risk.model_curvature() @ both  # G and H − G
    empirical = risk.empirical_fisher() @ both

    k = basis.shape[1]

    def squares(product: Tensor) -> Tensor:
        """Per probe the estimate of ‖A‖²."""
        return product[:, :k].square().sum() + product[:, k:].square().sum(0)

    def traces(product: Tensor) -> Tensor:
        """Per probe the estimate of tr A."""
        return (both[:, :k] * product[:, :k]).sum() + (both[:, k:] * product[:, k:]).sum(0)

    size = squares(ggn)
    return Distances(
        hessian_to_ggn=_ratio(squares(curvature), size, power=0.5),
        ggn_to_empirical=_ratio(squares(ggn - empirical), size, power=0.5),
        trace_ratio=_ratio(traces(empirical), traces(ggn)),
        squared_norm_of_hessian=float(squares(ggn + curvature).mean()),
    )


def _ratio(top: Tensor, bottom: Tensor, power: float = 1.0) -> Estimate:
    """(mean of ``top`` / mean of ``bottom``) ** power, and its standard error by the jackknife."""
    n = len(top)
    left_out = ((top.sum() - top) / (bottom.sum() - bottom)) ** power
    spread = (left_out - left_out.mean()).square().sum() * (n - 1) / n
    return Estimate(float((top.sum() / bottom.sum()) ** power), float(spread.sqrt()))


@dataclass(frozen=True)
class Checkpoint:
    """What was measured at one state of the network."""

    name: str
    step: int
    loss: float
    accuracy: float  # on images that were not trained on
    gradient_norm: float
    spectra: dict[str, tuple[Eigenvalues, Eigenvalues]]  # matrix → (smallest, largest)
    distances: Distances

    @property
    def negative_share(self) -> float:
        """The part of ‖H‖² in the negative eigenvalues found: a lower bound for all of them."""
        low = self.spectra["H"][0].values
        return float((low[low < 0] ** 2).sum()) / self.distances.squared_norm_of_hessian


# ---------------------------------------------------- the Fisher diagonal, timed


@dataclass(frozen=True)
class Timing:
    """One way to do something: median and extremes of its rounds in seconds, and its error."""

    name: str
    median: float
    fastest: float
    slowest: float
    error: float | None


def diagonal_timings(
    model: nn.Module, loss: nn.CrossEntropyLoss, x: Tensor, y: Tensor, rounds: int, chunk: int
) -> list[Timing]:
    """The diagonal of the empirical Fisher matrix in two ways, beside one gradient.

    All are run in turn within every round, so that a busy moment of the machine falls on all of
    them. Errors are the largest differences to a float64 loop over samples, in units of the
    largest entry of the diagonal.
    """
    names = dict(model.named_parameters())

    def gradient() -> None:
        torch.autograd.grad(loss(model(x), y), list(names.values()))

    def curvext() -> Tensor:
        return _flat(cx.fisher_diagonal(model, loss, (x, y)))

    def per_sample() -> Tensor:
        return _flat(_diagonal_by_vmap(model, loss, x, y, chunk))

    reference = _diagonal_by_loop(model, loss, x, y)

    def error(found: Tensor) -> float:
        return float((found.double() - reference).abs().max() / reference.abs().max())

    ways: dict[str, Callable[[], object]] = {
        "one gradient": gradient,
        "curvext.fisher_diagonal": curvext,
        f"torch.func vmap(grad), chunks of {chunk}": per_sample,
    }
    errors = [None, error(curvext()), error(per_sample())]
    gradient()  # all three are warm now
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return [
        Timing(name, statistics.median(t), min(t), max(t), e)
        for (name, t), e in zip(times.items(), errors, strict=True)
    ]


def _diagonal_by_vmap(
    model: nn.Module, loss: nn.CrossEntropyLoss, x: Tensor, y: Tensor, chunk: int
) -> dict[str, Tensor]:
    """(1/N) Σ_n g_n² from per-sample gradients, ``chunk`` samples of them in memory at a time."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(model, theta, (image.unsqueeze(0),)), label.unsqueeze(0))

    per_sample = vmap(grad(of_one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for images, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        for name, g in per_sample(weights, images, labels).items():
            total[name] += g.square().sum(0)
    return {name: t / len(x) for name, t in total.items()}


def _diagonal_by_loop(model: nn.Module, loss: nn.CrossEntropyLoss, x: Tensor, y: Tensor) -> Tensor:
    """The definition, sample by sample, in float64."""
    state = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in state.items()}
    for image, label in zip(x.double().split(1), y.split(1), strict=True):
        gradients = torch.autograd.grad(
            loss(functional_call(model, state, (image,)), label), list(state.values())
        )
        for t, g in zip(total.values(), gradients, strict=True):
            t += g.square()
    return _flat(total) / len(x)


def _flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in named.values()])
