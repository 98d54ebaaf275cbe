"""Find training images whose label is wrong, by their influence on images whose label is right.

    python examples/label_errors.py            (--seeds 1 for a quick look)

A tenth of the labels of scikit-learn's digits is replaced by another. A network learns them all the same. A wrong label
is one that harms: a step on it raises the loss of other images. So training images are sorted by their score on 200
images that were checked by hand, the most harmful first, and as many are inspected as there are wrong ones:

* influence: ⟨g_q, (B + λI)⁻¹ g_n⟩, B the K-FAC factors of the Fisher matrix (Koh & Liang 2017; Grosse et al. 2023);
* gradient similarity: ⟨g_q, g_n⟩, the same without curvature, in which a few steep directions drown the rest;
* random.

The last row is the loss of each training image. Where every error is a blunder, as here, it finds as many and costs
less; it cannot say which images an error harms.
"""

import torch
from torch import Tensor, nn
from training import LOSS, Data, by_row, digits, fit, seeds, table

import curvext as cx

EPOCHS = 30
WRONG = 0.1  # share of the labels
CHECKED = 200  # images whose label is known to be right
DAMPING = 1e-2


def planted(data: Data) -> tuple[Data, Tensor]:
    """The data with wrong labels, and which they are."""
    x, y = data
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y))[: round(WRONG * len(y))]] = True
    other = (y + torch.randint(1, 10, y.shape)) % 10
    return (x, torch.where(wrong, other, y)), wrong


def found(harm: Tensor, wrong: Tensor) -> float:
    """How many of the most harmful images have a wrong label, in percent."""
    worst = harm.argsort(descending=True)[: int(wrong.sum())]
    return 100 * float(wrong[worst].double().mean())


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{score: precision}."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    train, wrong = planted(train)
    model = fit(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), train, EPOCHS, seed)
    risk = cx.EmpiricalRisk(model, LOSS, train)
    checked = (test[0][:CHECKED], test[1][:CHECKED])
    influence = risk.kfac(kind="exact").scores(checked, DAMPING).mean(0)
    similarity = risk.empirical_fisher().gram(checked).mean(1)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(train[0]), train[1], reduction="none")
    return {
        "random": (found(torch.rand(len(wrong)), wrong),),
        "gradient similarity": (found(-similarity, wrong),),
        "influence by K-FAC": (found(-influence, wrong),),
        "the image's own loss": (found(losses, wrong),),
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Wrong labels among as many suspects, in percent, mean ± std, seeds: {len(runs)}")
    print(table(["sorted by", "precision"], rows))
    means = {name: sum(row[0]) / len(row[0]) for name, row in rows.items()}
    best = means["influence by K-FAC"]
    lead = best - means["gradient similarity"]
    print(
        f"\nInfluence finds {best:.0f}%, {lead:.0f} points more than gradient similarity ", end=""
    )
    print(f"and {best - means['random']:.0f} more than chance.")
    assert lead > 10, "influence scores show no benefit"


if __name__ == "__main__":
    main()
