"""Merge two networks that know different digits into one that knows them all, without further training.

    python examples/fisher_merging.py            (--seeds 1 for a quick look)

Two networks start from one briefly trained network. The first then sees the digits 0-4 with a few others among
them, the second 5-9 likewise. Their weights are averaged, plainly or by how much each network's predictions depend on
each weight (Matena & Raffel 2022):

    θ = Σ_k F_k θ_k / Σ_k F_k,    F_k = diagonal of network k's Fisher matrix on its own data.

Where one network does not care about a weight, the other one decides. Averaging needs the common start: from two random
starts the hidden units of the networks would not correspond to one another.
"""

from copy import deepcopy
from statistics import mean

import torch
from torch import Tensor, nn
from training import LOSS, TERMINAL, accuracy, by_row, digits, fit, loader, only, seeds, table

import curvext as cx

FIRST = range(5)
SECOND = range(5, 10)
START = 100  # images the common start has seen
OTHERS = 0.05  # the share of the other network's images that each one sees
EPOCHS = 20
LEAST = 1e-10  # where neither network depends on a weight, the plain average


def merge(models: list[nn.Module], importances: list[dict[str, Tensor]]) -> nn.Module:
    """The network whose weights are the importance-weighted means."""
    merged = deepcopy(models[0])
    with torch.no_grad():
        for name, p in merged.named_parameters():
            theta = torch.stack([m.get_parameter(name) for m in models])
            weight = torch.stack([f[name] for f in importances]) + LEAST
            p.copy_((weight * theta).sum(0) / weight.sum(0))
    return merged


def run(seed: int) -> dict[str, tuple[float, float, float]]:
    """{network: test accuracy on the first's digits, on the second's, on all}."""
    torch.manual_seed(seed)
    (x, y), test = digits(seed)
    start = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    fit(start, (x[:START], y[:START]), EPOCHS, seed)

    x, y = x[START:], y[START:]
    mine = torch.isin(y, torch.tensor(FIRST)) ^ (torch.rand(len(y)) < OTHERS)
    shares = [(x[mine], y[mine]), (x[~mine], y[~mine])]
    models = [fit(deepcopy(start), s, EPOCHS, seed + k) for k, s in enumerate(shares)]

    def importances(kind: str) -> list[dict[str, Tensor]]:
        return [
            cx.fisher_diagonal(model, LOSS, loader(share), kind=kind, progress=TERMINAL)
            for model, share in zip(models, shares, strict=True)
        ]

    alike = [{name: torch.ones_like(p) for name, p in start.named_parameters()}] * 2
    networks = {
        "common start": start,
        "first": models[0],
        "second": models[1],
        "plain average": merge(models, alike),
        "weighted, empirical Fisher": merge(models, importances("empirical")),
        "weighted, exact Fisher": merge(models, importances("exact")),
        "trained on all data": fit(deepcopy(start), (x, y), EPOCHS, seed),
    }
    tests = [only(test, FIRST), only(test, SECOND), test]
    return {name: tuple(accuracy(net, t) for t in tests) for name, net in networks.items()}


def main() -> None:
    runs = [run(seed) for seed in seeds(default=8)]
    rows = by_row(runs)
    print(f"Test accuracy in percent, mean ± std, seeds: {len(runs)}")
    print(table(["network", "0-4", "5-9", "all"], rows))
    plain, exact = rows["plain average"][2], rows["weighted, exact Fisher"][2]
    gains = [e - p for e, p in zip(exact, plain, strict=True)]
    better = sum(g > 0 for g in gains)
    print(
        f"\nExact Fisher over plain average: {mean(gains):+.1f} points, better in {better} of {len(gains)} seeds."
    )
    assert mean(gains) > 0.5, "merging by the Fisher matrix shows no benefit over the plain average"


if __name__ == "__main__":
    main()
