"""Train an autoencoder with K-FAC: how far does the loss fall for the same amount of work, and of time?

    python examples/kfac_training.py            (--seeds 1 for a quick look)

An autoencoder with 9,048 parameters learns three quarters of scikit-learn's digits, all of them in every step: 64
pixels through 8 numbers and back, the kind of network on which first-order methods crawl (Martens & Grosse 2015). Three
ways:

* gradient descent with momentum 0.9, with the best of several step lengths, found by trying them all (not counted);
* Adam, likewise;
* K-FAC: along d = −(B + λI)⁻¹ ∇L and the step before, as far as the quadratic model of G + λI says; λ moves by what
  each step brought. B has the factors of the Fisher matrix by one drawn label for each image; its inverse is a value,
  ``K.inverse(λ)``, kept for five steps. Nothing is tuned.

Work is counted: a gradient is 1, and so are new factors (a forward pass, one backward pass without weight gradients,
and the symmetric products of the factors); a loss alone is 1/3, a product with G 4/3. The eigendecompositions of the
factors are not passes over the data; the time beside the work includes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import mean

import torch
from torch import nn
from training import by_row, digits, seeds, table

import curvext as cx

BUDGET = 400.0  # in gradients
SHOWN = (100, 200, 400)
VALUE, PRODUCT = 1 / 3, 4 / 3
EVERY = 5  # steps for which an inverse is kept
DAMPING, LEAST = 0.1, 1e-6
Trace = Iterator[tuple[float, float]]  # (work so far, the loss there)


def autoencoder() -> nn.Module:
    widths = (64, 48, 24, 8, 24, 48, 64)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    del layers[5], layers[-1]  # the eight numbers and the pixels are linear
    return nn.Sequential(*layers)


def descent(risk: cx.EmpiricalRisk, length: float) -> Trace:
    """Gradient descent with momentum."""
    velocity, work = torch.zeros(risk.space.size), 0.0
    while True:
        gradient = risk.gradient()
        yield work, risk.value()  # known from the gradient's pass
        velocity = 0.9 * velocity - length * gradient
        cx.take_step(risk, velocity)
        work += 1


def adam(risk: cx.EmpiricalRisk, length: float) -> Trace:
    """Adam (Kingma & Ba 2015)."""
    first, second = torch.zeros(risk.space.size), torch.zeros(risk.space.size)
    steps = 0
    while True:
        gradient = risk.gradient()
        yield float(steps), risk.value()
        steps += 1
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        size = (second / (1 - 0.999**steps)).sqrt() + 1e-8
        cx.take_step(risk, -length * first / (1 - 0.9**steps) / size)


def kfac(risk: cx.EmpiricalRisk, length: float) -> Trace:
    """K-FAC with the quadratic model's momentum; ``length`` multiplies the model's own, which is 1."""
    work, steps, damping = 0.0, 0, DAMPING
    last: torch.Tensor | None = None
    inverse: cx.LinearOperator = cx.Identity(risk.space.size)
    while True:
        gradient, value = risk.gradient(), risk.value()
        yield work, value
        if steps % EVERY == 0:
            inverse = risk.kfac(seed=steps).inverse(damping)
            work += 1
        steps += 1
        direction = inverse @ gradient
        V = direction.unsqueeze(1) if last is None else torch.stack([direction, last], 1)
        # the minimum over both directions of ∇Lᵀs + ½ sᵀ(G + λI)s
        model = (V.T @ (risk.ggn() @ V + damping * V)).double()
        slope = (V.T @ gradient).double()
        mixture = -torch.linalg.lstsq(model, slope.unsqueeze(1)).solution[:, 0]
        promised = -float(slope @ mixture + 0.5 * mixture @ model @ mixture)
        step = length * (V @ mixture.float())
        cx.take_step(risk, step)
        ratio = (value - risk.value()) / promised
        work += 1 + PRODUCT * V.shape[1] + VALUE
        damping = max(LEAST, damping * (2 / 3 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0))
        last = step
        if not ratio > 0:  # back, with more damping
            cx.take_step(risk, step, -1.0)
            last = None


WAYS = {
    "gradient descent": (descent, (0.3, 1.0, 3.0)),
    "Adam": (adam, (3e-3, 1e-2, 3e-2)),
    "K-FAC": (kfac, (1.0,)),
}


def trained(way: str, length: float, seed: int) -> tuple[float, ...]:
    """log10 of the least loss up to each of the shown amounts of work, and the seconds it took."""
    torch.manual_seed(seed)
    (x, _), _ = digits(seed)
    risk = cx.EmpiricalRisk(autoencoder(), nn.MSELoss(), (x, x))
    begin, found, least = time.perf_counter(), [], math.inf
    for work, value in WAYS[way][0](risk, length):
        while len(found) < len(SHOWN) and work > SHOWN[len(found)]:
            found.append(math.log10(least))
        if len(found) == len(SHOWN):
            return (*found, time.perf_counter() - begin)
        least = min(least, value)
    raise AssertionError("a way of training ends by its budget")


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{way: what :func:`trained` gives for the best length}."""
    return {
        way: min((trained(way, length, seed) for length in lengths), key=lambda row: row[-2])
        for way, (_, lengths) in WAYS.items()
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=3)]
    rows = by_row(runs)
    print(f"log10 of the training loss by work in gradients, mean ± std, seeds: {len(runs)}")
    print(table(["", *map(str, SHOWN), "seconds"], rows))
    ends = {way: mean(row[len(SHOWN) - 1]) for way, row in rows.items()}
    half = mean(rows["K-FAC"][1])
    first = min(ends["Adam"], ends["gradient descent"])
    print(
        f"\nK-FAC's loss is 10^{ends['K-FAC']:.2f} beside 10^{first:.2f} of the better of the others, ",
        end="",
    )
    print(f"and 10^{half:.2f} after half of the work.")
    assert ends["K-FAC"] < first - 0.1, "K-FAC shows no benefit"


if __name__ == "__main__":
    main()
