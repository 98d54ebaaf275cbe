"""Remove most hidden units of a network and keep its accuracy: which units can go?

    python examples/fisher_pruning.py            (--seeds 1 for a quick look)

Near a minimum of −log p, setting a weight to zero raises it by about ½ F_i θ_i². A unit's score is the sum over its
incoming weights; the units with the lowest scores go (after Theis et al. 2018), the same share in each hidden layer,
in eight rounds with one epoch of training after each. The rivals differ in the score alone:

* Fisher: Σ_i F_i θ_i², F the exact Fisher diagonal, computed anew in every round.
* magnitude: Σ_i θ_i². It cannot see that a large weight on a pixel that is always dark does nothing.
* random.

The claim is checked up to 80 %. Where hardly a unit is left all scores are poor; the last column is as it comes.
"""

from copy import deepcopy
from statistics import mean

import torch
from torch import Tensor, nn
from training import LOSS, TERMINAL, Data, accuracy, by_row, digits, fit, loader, seeds, table

import curvext as cx

HIDDEN = 64
LAYERS = {"0": "2", "3": "5"}  # a hidden layer, and the mask of its units
REMOVED = (0.25, 0.375, 0.5, 0.625, 0.7, 0.75, 0.8, 0.9)  # share of the units, after each round
SHOWN = (0.5, 0.7, 0.8, 0.9)
CLAIMED = 3  # of the shown ones: up to 80 %


class Units(nn.Module):
    """Hidden units of which some are removed: their output is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(64, HIDDEN), nn.ReLU(), Units()),
        *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), Units()),
        nn.Linear(HIDDEN, 10),
    )


def scores(method: str, model: nn.Module, data: Data) -> dict[str, Tensor]:
    """{hidden layer: [units]}; the lowest can go."""
    weights = {layer: model.get_parameter(f"{layer}.weight").detach() for layer in LAYERS}
    if method == "random":
        return {layer: torch.rand(HIDDEN) for layer in LAYERS}
    if method == "magnitude":
        return {layer: w.square().sum(1) for layer, w in weights.items()}
    names = [f"{layer}.weight" for layer in LAYERS]
    fisher = cx.fisher_diagonal(
        model, LOSS, loader(data), kind="exact", params=names, progress=TERMINAL
    )
    return {layer: (fisher[f"{layer}.weight"] * w.square()).sum(1) for layer, w in weights.items()}


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{method: test accuracy at each of the shown shares}."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    full = fit(network(), train, 30, seed)
    found = {"nothing removed": (accuracy(full, test),) * len(SHOWN)}
    for method in ("random", "magnitude", "Fisher"):
        model = deepcopy(full)
        found[method] = ()
        for share in REMOVED:
            for layer, score in scores(method, model, train).items():
                mask = model.get_buffer(f"{LAYERS[layer]}.mask")
                score[mask == 0] = -1  # removed units stay removed
                mask[score.argsort()[: round(share * HIDDEN)]] = 0
            fit(model, train, 1, seed)
            if share in SHOWN:
                found[method] += (accuracy(model, test),)
    return found


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Test accuracy in percent by share of units removed, mean ± std, seeds: {len(runs)}")
    print(table(["score", *(f"{share:.0%}" for share in SHOWN)], rows))
    up_to_80 = {name: mean(mean(row[i]) for i in range(CLAIMED)) for name, row in rows.items()}
    lead = {rival: up_to_80["Fisher"] - up_to_80[rival] for rival in ("magnitude", "random")}
    print(f"\nUp to 80%, Fisher is {lead['magnitude']:.1f} points above magnitude", end=" ")
    print(f"and {lead['random']:.1f} above random.")
    assert min(lead.values()) > 0.5, "pruning by the Fisher matrix shows no benefit"


if __name__ == "__main__":
    main()
