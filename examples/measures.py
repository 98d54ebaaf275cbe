"""What the demo measures: one state of a network, and the timing of a Fisher diagonal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import curvext as cx
from curvext.results import Comparison, EigenResult, Estimate


@dataclass(frozen=True)
class Checkpoint:
    """What was measured at one state of the network."""

    name: str
    step: int
    accuracy: float  # on images that were not trained on
    spectra: dict[str, tuple[EigenResult, EigenResult]]  # matrix → (smallest, largest)
    comparison: Comparison
    trace_ratio: float  # tr F_emp / tr F

    @property
    def hessian_to_ggn(self) -> Estimate:
        """‖H − G‖/‖G‖."""
        return self.comparison.distances["H", "G"]

    @property
    def ggn_to_empirical(self) -> Estimate:
        """‖G − F_emp‖/‖G‖."""
        return self.comparison.distances["F_emp", "G"]

    @property
    def negative_share(self) -> float:
        """The part of ‖H‖² in the negative eigenvalues found: a lower bound for all of them."""
        low = self.spectra["H"][0].values
        return float((low[low < 0] ** 2).sum() / self.comparison.norms["H"].value ** 2)


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
