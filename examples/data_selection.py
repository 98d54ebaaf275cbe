"""Train on half of the images and lose nothing: keep those whose gradients are large.

    python examples/data_selection.py            (--seeds 1 for a quick look)

The digits are cut to a long tail, as data collected in the wild has it: 130 images of a 0, ever fewer of those that
follow, 13 of a 9. How much an image has to teach shows in the norm of its gradient, averaged over a few networks that
have been trained briefly (GraNd, Paul et al. 2021): large for rare and for difficult images, small for the many that
look alike. A new network is trained on the images with the largest norms, and on as many drawn at random, for the same
number of steps. The test images are of all digits alike. The call in ``scores`` makes one backward pass for each batch,
and replaces one for each image:

    for x_n, y_n in zip(x, y):
        g = torch.autograd.grad(loss(model(x_n[None]), y_n[None]), parameters)
        norms.append(torch.stack([part.norm() for part in g]).norm())
"""

from statistics import mean

import torch
from torch import Tensor, nn
from training import BATCH, LOSS, Data, accuracy, by_row, digits, fit, seeds, table

import curvext as cx

NETWORKS, EARLY = 5, 20  # networks and epochs for the scores
SHARES = (0.3, 0.5)  # of the images
STEPS = 800
MOST, TAIL = 130, 0.1  # images of the first digit, and the share of them that the last one has


def long_tail(data: Data) -> Data:
    """Fewer images of each digit than of the one before."""
    x, y = data
    counts = [round(MOST * TAIL ** (digit / 9)) for digit in range(10)]
    kept = torch.cat([(y == d).nonzero().view(-1)[:n] for d, n in enumerate(counts)])
    return x[kept], y[kept]


def network() -> nn.Module:
    """An untrained one."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def scores(data: Data, seed: int) -> Tensor:
    """The norm of each image's gradient, averaged over networks."""
    models = [fit(network(), data, EARLY, seed + k) for k in range(NETWORKS)]
    return torch.stack([cx.per_sample_gradient_norms(m, LOSS, data) for m in models]).mean(0)


def trained_on(chosen: Tensor, data: Data, test: Data, seed: int) -> float:
    """Test accuracy after training on these images alone."""
    torch.manual_seed(seed)
    batches = -(-len(chosen) // BATCH)
    model = fit(network(), (data[0][chosen], data[1][chosen]), STEPS // batches, seed)
    return accuracy(model, test)


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{chosen by: accuracy for each share, and for all}."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    data = long_tail(train)
    order = {
        "random": torch.randperm(len(data[0])),
        "gradient norm": scores(data, seed).argsort(descending=True),
    }
    every = trained_on(torch.arange(len(data[0])), data, test, seed)
    return {
        name: (*(trained_on(by[: int(s * len(by))], data, test, seed) for s in SHARES), every)
        for name, by in order.items()
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Test accuracy in percent, mean ± std, seeds: {len(runs)}")
    print(table(["chosen by", *(f"{s:.0%} of them" for s in SHARES), "all"], rows))
    leads = [
        mean(chosen) - mean(chance)
        for chance, chosen in zip(rows["random"], rows["gradient norm"], strict=True)
    ]
    spared = mean(rows["gradient norm"][-2]) - mean(rows["random"][-1])
    words = " and ".join(f"{lead:+.1f} points" for lead in leads[:-1])
    print(f"\nGradient norm beside chance: {words}; half of the images ", end="")
    print(f"beside all of them: {spared:+.1f}.")
    assert mean(leads[:-1]) > 0.5, "choosing by gradient norm shows no benefit"


if __name__ == "__main__":
    main()
