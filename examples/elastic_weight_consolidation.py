"""Learn the digits 0-4, then 5-9, without forgetting the first: elastic weight consolidation.

    python examples/elastic_weight_consolidation.py            (--seeds 1 for a quick look)

While task B is learned, each weight of the shared body is held at its value θ* after task A by a spring as stiff as
task A needs it (Kirkpatrick et al. 2017); each task has a head of its own:

    L_B(θ) + λ/2 Σ_i F_i (θ_i − θ*_i)²,    F = diagonal of task A's Fisher matrix at θ*.

One λ serves every row but the last. Which diagonal is taken decides how stiff that is (van de Ven 2025):

* exact: averaged over labels as the network itself predicts them. This is the Fisher matrix.
* empirical: labels of the data. They hardly surprise a trained network, so it is small and wants a larger λ.
* squared mean gradients of batches, a common mistake: within a batch gradients cancel, and about
  F_emp / batch size is left. At this λ nothing is protected. The last row has λ × batch size, which
  mends it, until somebody changes the batch size.
"""

from collections.abc import Callable
from copy import deepcopy
from math import nan
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from training import LOSS, TERMINAL, Data, accuracy, by_row, digits, fit, loader, only, seeds, table

import curvext as cx

STRENGTH, EPOCHS = 100.0, 30


def squared_batch_gradients(model: nn.Module, data: Data) -> dict[str, Tensor]:
    """The mistake: (mean_n g_n)² of each batch, averaged over batches."""
    body = {name: p for name, p in model.named_parameters() if name.startswith("0.")}
    batches = [torch.autograd.grad(LOSS(model(x), y), list(body.values())) for x, y in loader(data)]
    gradients = zip(*batches, strict=True)
    return {n: torch.stack(g).square().mean(0) for n, g in zip(body, gradients, strict=True)}


def springs(model: nn.Module, stiffness: dict[str, Tensor]) -> Callable[[], Tensor]:
    """½ Σ_i F_i (θ_i − θ*_i)², with θ* the parameters as they are now."""
    held = [(f, model.get_parameter(name)) for name, f in stiffness.items()]
    stars = [p.detach().clone() for _, p in held]
    return lambda: sum((f * (p - s) ** 2).sum() / 2 for (f, p), s in zip(held, stars, strict=True))


def run(seed: int, folder: Path) -> dict[str, tuple[float, float, float]]:
    """{row: (1000 × trace of the diagonal, accuracy on A, accuracy on B)}."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    a, a_test = only(train, range(5)), only(test, range(5))
    b, b_test = ((x, y - 5) for x, y in (only(train, range(5, 10)), only(test, range(5, 10))))
    body = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    head_a, head_b = nn.Linear(64, 5), nn.Linear(64, 5)
    model = fit(nn.Sequential(body, head_a), a, EPOCHS, seed)
    found = {"(before B)": (nan, accuracy(model, a_test), nan)}

    for kind in ("exact", "empirical"):
        options = {"kind": kind, "params": "0.*", "progress": TERMINAL}
        diagonal = cx.fisher_diagonal(model, LOSS, loader(a), **options)
        cx.save_diagonal(diagonal, folder / kind, {"kind": kind, "task": "digits 0-4"})
    squares, batch = squared_batch_gradients(model, a), loader(a).batch_size
    for row, stiffness, strength in (
        ("nothing", squares, 0.0),
        ("exact Fisher", cx.load_diagonal(folder / "exact"), STRENGTH),
        ("empirical Fisher", cx.load_diagonal(folder / "empirical"), STRENGTH),
        ("squared batch gradients", squares, STRENGTH),
        (f"the same, λ × {batch}", squares, STRENGTH * batch),
    ):
        model = deepcopy(nn.Sequential(body, head_b))
        penalty = springs(model, {name: strength * f for name, f in stiffness.items()})
        fit(model, b, EPOCHS, seed + 100, penalty)
        trace = 1000 * sum(float(f.sum()) for f in stiffness.values()) if strength else nan
        on_a = accuracy(nn.Sequential(model[0], head_a), a_test)
        found[row] = (trace, on_a, accuracy(model, b_test))
    return found


def main() -> None:
    with TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder)) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(
        f"Test accuracy in percent after A, then B; λ = {STRENGTH:g}; mean ± std, seeds: {len(runs)}"
    )
    print(table(["held back by", "1000 tr F", "A: 0-4", "B: 5-9"], rows))
    a, b = ({name: mean(row[i]) for name, row in rows.items()} for i in (1, 2))
    kept, paid = a["exact Fisher"] - a["nothing"], b["nothing"] - b["exact Fisher"]
    print(f"\nThe exact Fisher keeps {kept:.1f} points of A and costs {paid:.1f} of B.")
    assert kept > 3 and paid < 4, "elastic weight consolidation shows no benefit"
    mistake = a["exact Fisher"] - a["squared batch gradients"]
    assert mistake > 3, "squared batch gradients protect as well as the Fisher matrix"


if __name__ == "__main__":
    main()
