"""Train a network with curvature: how far does the loss fall for the same amount of work?

    python examples/second_order_training.py            (--seeds 1 for a quick look)

A network with 1,210 parameters learns three quarters of scikit-learn's digits, all of them in every step. Five ways:

* gradient descent, with the best of several step lengths, which is found by trying them all (not counted);
* gradient descent with momentum 0.9, likewise;
* L-BFGS, SciPy's, on ``cx.objective``;
* Hessian-free Gauss-Newton (Martens 2010): conjugate gradients on G, started from the step before, with the
  damping moved by what each step brought;
* the natural gradient, the same with the Fisher matrix estimated from labels drawn for each image. For softmax
  cross-entropy the exact Fisher matrix is G, which would be the row above once more.

Work is counted, not timed: a gradient is 1 (a pass forwards, and one of twice the cost backwards), a loss alone 1/3,
a product with a curvature matrix 4/3 (one with J and one with Jᵀ, each as expensive as the pass backwards).

What to see: at first gradient descent is ahead, because a step with curvature is expensive. Then it crawls along the
valley's floor, while curvature keeps the loss falling. L-BFGS, which estimates curvature from gradients that it needs
anyway, beats both on so small and smooth a problem with all data in every step. The estimate of F loses to G because
of the noise of its labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import mean

import torch
from scipy.optimize import minimize
from torch import nn
from training import LOSS, by_row, digits, seeds, table

import curvext as cx
from curvext.results import Step

BUDGET = 600.0  # in gradients
SHOWN = (20, 60, 200, 600)
VALUE, PRODUCT = 1 / 3, 4 / 3
#: what float32 resolves of a mean over the samples; L-BFGS comes to a loss of exactly zero on some machines
LOWEST = 1e-10
LENGTHS = (0.3, 1.0, 3.0)
Trace = Iterator[tuple[float, float]]  # (work so far, the loss there)


def network() -> nn.Module:
    """Smooth, so that second derivatives exist everywhere."""
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def descent(risk: cx.EmpiricalRisk, length: float, momentum: float) -> Trace:
    """Gradient descent."""
    velocity, work = torch.zeros(risk.space.size), 0.0
    while True:
        gradient = risk.gradient()
        yield work, risk.value()  # known from the gradient's pass
        velocity = momentum * velocity - length * gradient
        cx.take_step(risk, velocity)
        work += 1


def lbfgs(risk: cx.EmpiricalRisk) -> Trace:
    """L-BFGS; every evaluation of SciPy's is a loss and its gradient at one point."""
    found: list[float] = []
    objective = cx.objective(risk)

    def evaluate(x: object) -> tuple[float, object]:
        found.append(objective.fun(x))
        return found[-1], objective.jac(x)

    limits = dict(maxfun=int(BUDGET), maxiter=int(BUDGET), ftol=0.0, gtol=0.0)
    minimize(evaluate, objective.x0, jac=True, method="L-BFGS-B", options=limits)
    yield from enumerate(found)


def with_curvature(risk: cx.EmpiricalRisk, step_of: Callable[..., Step], damping: float) -> Trace:
    """Damped steps by conjugate gradients; one that raises the loss is taken back."""
    work, last = 0.0, None
    while True:
        step = step_of(risk, damping, tol=0.1, maxiter=10, x0=last)
        work += 1 + PRODUCT * (step.cg.products + 1)
        yield work, step.value
        cx.take_step(risk, step)
        value = risk.value()
        work += VALUE
        damping = step.next_damping(value)
        last = 0.9 * step.step
        if not value < step.value:
            cx.take_step(risk, step.step, -1.0)
            last = None


def drawn_anew() -> Callable[..., Step]:
    """Natural-gradient steps, each with labels of its own."""
    draws = iter(range(10**9))

    def step_of(risk: cx.EmpiricalRisk, damping: float, **options: object) -> Step:
        return cx.natural_gradient_step(
            risk, damping, kind="mc", samples=4, seed=next(draws), **options
        )

    return step_of


def losses(trace: Trace) -> tuple[float, ...]:
    """log10 of the lowest loss up to each of the shown amounts of work."""
    lowest, found = math.inf, []
    for work, value in trace:
        while len(found) < len(SHOWN) and work > SHOWN[len(found)]:
            found.append(math.log10(lowest))
        if len(found) == len(SHOWN):
            break
        lowest = min(lowest, max(value, LOWEST))
    return tuple(found + [math.log10(lowest)] * (len(SHOWN) - len(found)))


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{method: log10 of the loss at each of the shown amounts of work}."""
    train, _ = digits(seed)

    def fresh() -> cx.EmpiricalRisk:
        torch.manual_seed(seed)
        return cx.EmpiricalRisk(network(), LOSS, train)

    def best(momentum: float) -> tuple[float, ...]:
        tried = [losses(descent(fresh(), length, momentum)) for length in LENGTHS]
        return min(tried, key=lambda row: row[-1])

    return {
        "gradient descent": best(0.0),
        "with momentum": best(0.9),
        "L-BFGS": losses(lbfgs(fresh())),
        "Gauss-Newton": losses(with_curvature(fresh(), cx.gauss_newton_step, 1e-1)),
        "natural gradient": losses(with_curvature(fresh(), drawn_anew(), 1e-1)),
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=2)]
    rows = by_row(runs)
    print(f"log10 of the training loss by work in gradients, mean ± std, seeds: {len(runs)}")
    print(table(["", *(str(work) for work in SHOWN)], rows))
    end = {name: mean(row[-1]) for name, row in rows.items()}
    rival = min(end["gradient descent"], end["with momentum"])
    lead = rival - end["Gauss-Newton"]
    print(
        f"\nAfter {BUDGET:.0f} gradients' work Gauss-Newton's loss is 10^{lead:.1f} times lower",
        end=" ",
    )
    print("than that of gradient descent with momentum.")
    assert lead > 1, "Gauss-Newton steps show no benefit"


if __name__ == "__main__":
    main()
