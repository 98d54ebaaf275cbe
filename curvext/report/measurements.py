"""Every figure of a report, measured on one risk.

One file because each figure is a few lines, and the order in which they are measured is what the report costs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from curvext import algorithms
from curvext._version import __version__
from curvext.algorithms.probes import BLOCK, Probes
from curvext.algorithms.products import Products
from curvext.arguments import as_integer, as_seed
from curvext.results import Comparison, CriticalPoint, Density, Estimate
from curvext.risk import EmpiricalRisk


@dataclass(frozen=True)
class Group:
    """A part of the network: the parameters of one module.

    Attributes:
        name: of the module.
        size: how many parameters.
        traces: of the diagonal block of each matrix.
        shares: the traces over the sum of all parts' magnitudes, with the jackknife's standard errors.
    """

    name: str
    size: int
    traces: dict[str, Estimate]
    shares: dict[str, Estimate]


@dataclass(frozen=True)
class Cost:
    """The cost of a quantity.

    Attributes:
        what: the quantity, in words.
        seconds: median over the rounds.
        gradients: the same in units of one forward and one backward pass of the network.
    """

    what: str
    seconds: float
    gradients: float


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title: the name of the risk.
        loss: the loss by name, with its reduction.
        samples: N.
        point: the verdict.
        comparison: the matrices side by side.
        densities: of each different matrix; one name may stand for several that are equal, as "G = F".
        groups: by module, in the order of the network.
        costs: the first is the gradient.
        machine: versions and hardware.
    """

    title: str
    loss: str
    samples: int
    point: CriticalPoint
    comparison: Comparison
    densities: dict[str, Density]
    groups: tuple[Group, ...]
    costs: tuple[Cost, ...]
    machine: dict[str, str]


def measure(
    risk: EmpiricalRisk,
    title: str = "a risk",
    leading: int = 5,
    probes: int = 16,
    density_probes: int = 4,
    density_steps: int = 60,
    rounds: int = 5,
    seed: int = 0,
    say: Callable[[str], None] = lambda words: None,
) -> Report:
    """Measures everything that a report shows.

    Args:
        risk: the risk at its current parameters.
        title: its name on the page.
        leading: eigenvalues of each matrix.
        probes: random vectors for norms and distances, at least 2; three times as many for the traces of the parts.
        density_probes, density_steps: of each spectral density.
        rounds: of timing, of which the median is reported.
        seed: of all random numbers.
        say: receives a line of progress before each part.

    Raises:
        TypeError: ``risk`` is no EmpiricalRisk.
        ValueError: an argument is out of range.

    Cost: some hundred products with each matrix; ``costs`` reports the time of one.
    """
    if not isinstance(risk, EmpiricalRisk):
        raise TypeError(f"report: expected a curvext.EmpiricalRisk, got {type(risk).__name__}")
    rounds = as_integer("report: rounds", rounds, 1)
    seed = as_seed("report: seed", seed)
    say("comparing the matrices")
    comparison = algorithms.compare(risk, leading=leading, probes=probes, seed=seed)
    say("the verdict on the point")
    point = algorithms.critical_point(risk, seed=seed)
    densities = {}
    for name, method in _different(comparison).items():
        say(f"the spectrum of {name}")
        operator = getattr(risk, method)()
        densities[name] = algorithms.spectral_density(
            operator, density_probes, density_steps, seed=seed
        )
    say("the parts of the network")
    groups = _groups(risk, comparison, _PER_PROBE * probes, seed)
    say("what it costs")
    costs = _costs(risk, comparison, rounds, seed)
    return Report(
        title=title,
        loss=f"{_LOSSES.get(type(risk.loss).__name__, 'custom')}, {risk.loss.reduction}",
        samples=risk.totals.samples,
        point=point,
        comparison=comparison,
        densities=densities,
        groups=groups,
        costs=costs,
        machine={
            "curvext": __version__,
            "torch": torch.__version__,
            "device": str(risk.space.device),
            "dtype": str(risk.space.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
            **({} if risk.group.alone else {"processes": str(risk.group.size)}),
        },
    )


#: traces of parts are estimated without deflation, so they need more probes
_PER_PROBE = 3
_LOSSES = {
    "SoftmaxCrossEntropy": "cross-entropy",
    "BinaryCrossEntropy": "binary cross-entropy",
    "SquaredError": "squared error",
}
_METHODS = {"H": "hessian", "G": "ggn", "F": "fisher", "F_emp": "empirical_fisher"}


def _different(comparison: Comparison) -> dict[str, str]:
    """The matrices to show, equal ones once: a name for each, and the method that gives it."""
    there = [n for n in _METHODS if n in comparison.traces]
    same = {e.claim: e.holds for e in comparison.equalities}
    shown = {n: _METHODS[n] for n in there}
    if same.get("F = G"):
        del shown["F"]
        shown = {("G = F" if n == "G" else n): m for n, m in shown.items()}
    return shown


def _groups(
    risk: EmpiricalRisk, comparison: Comparison, probes: int, seed: int
) -> tuple[Group, ...]:
    """Traces of the diagonal blocks: F_emp exactly, the others by Hutchinson's estimator block by block."""
    owner = [name.rpartition(".")[0] or name for name in risk.space.names]
    names = list(dict.fromkeys(owner))
    of_entry = torch.repeat_interleave(
        torch.tensor([names.index(o) for o in owner], device="cpu"),
        torch.tensor(risk.space.sizes, device="cpu"),
    ).to(risk.space.device)

    def by_group(entries: Tensor) -> Tensor:
        """Sums over each group, ``[groups, K]``, of ``[P, K]``."""
        total = entries.new_zeros(len(names), entries.shape[1], dtype=torch.float64)
        return total.index_add_(0, of_entry, entries.double())

    traces: dict[str, list[Estimate]] = {}
    shares: dict[str, list[Estimate]] = {}
    for name, method in _different(comparison).items():
        operator = getattr(risk, method)()
        products = Products(operator, "report")
        if name == "F_emp":
            samples = by_group(operator.diagonal().unsqueeze(1))
        else:
            stream = Probes(products, seed)
            signs = (stream.signs(min(BLOCK, probes - at)) for at in range(0, probes, BLOCK))
            samples = torch.cat([by_group(z * products.block(z)) for z in signs], 1)
        traces[name] = _jackknife(samples, lambda t: t, products.count)
        shares[name] = _jackknife(samples, _over_all, products.count)
    sizes = torch.bincount(of_entry, minlength=len(names)).tolist()
    return tuple(
        Group(
            name,
            sizes[i],
            {n: parts[i] for n, parts in traces.items()},
            {n: parts[i] for n, parts in shares.items()},
        )
        for i, name in enumerate(names)
    )


def _over_all(traces: Tensor) -> Tensor:
    """Shares of the sum of magnitudes, ``[groups, ...]``; zeros where that is zero."""
    whole = traces.abs().sum(0)
    return torch.where(whole > 0, traces / whole, 0.0)


def _jackknife(samples: Tensor, g: Callable[[Tensor], Tensor], products: int) -> list[Estimate]:
    """g of the mean of samples ``[groups, K]``, each with its standard error; 0 where K is 1, an exact one."""
    count = samples.shape[1]
    value = g(samples.mean(1))
    error = torch.zeros_like(value)
    if count > 1:
        left_out = g((samples.sum(1, keepdim=True) - samples) / (count - 1))
        error = (left_out.var(1) * (count - 1) ** 2 / count).sqrt()
    degrees = count - 1 if count > 1 else math.inf
    return [Estimate(v, e, products, degrees) for v, e in zip(value, error, strict=True)]


def _costs(risk: EmpiricalRisk, comparison: Comparison, rounds: int, seed: int) -> tuple[Cost, ...]:
    """Medians over interleaved rounds after a warm-up, with linearisations kept."""
    v = torch.randn(
        risk.space.size, generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    )
    v = v.to(risk.space.device, risk.space.dtype)
    leaves = [p for p in risk.space.parameters.values()]

    def gradient() -> None:
        if not risk.group.alone:  # one of all processes, sums over them included
            risk.gradient()
            return
        with risk.backward_passes() as batches:
            for backward, point in batches:
                if backward.output.requires_grad:
                    torch.autograd.grad(backward.output, leaves, point.residual, allow_unused=True)

    ways: dict[str, Callable[[], object]] = {
        "one gradient: a forward and a backward pass": gradient
    }
    for name, words in (("H", "Hessian"), ("G", "Gauss-Newton"), ("F_emp", "empirical Fisher")):
        if name in comparison.traces:
            operator = getattr(risk, _METHODS[name])()
            ways[f"{words} times a vector"] = partial(operator.matvec, v)
    empirical = risk.empirical_fisher()
    ways["empirical Fisher diagonal"] = empirical.diagonal
    ways["per-sample gradient norms"] = empirical.gradient_norms
    times: dict[str, list[float]] = {what: [] for what in ways}
    for turn in range(rounds + 1):
        for what, run in ways.items():
            _wait(risk.space.device)
            begin = time.perf_counter()
            run()
            _wait(risk.space.device)
            if turn:  # the first only warms up
                times[what].append(time.perf_counter() - begin)
    medians = {what: statistics.median(t) for what, t in times.items()}
    unit = next(iter(medians.values()))
    return tuple(Cost(what, seconds, seconds / unit) for what, seconds in medians.items())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
