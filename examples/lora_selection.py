"""Fine-tune low-rank adapters of a frozen network on what helps: data chosen by the adapters' gradients.

    python examples/lora_selection.py            (--seeds 1 for a quick look)

A network knows the digits as they are. It is to read them upside down; there are 30 examples of that, and a pool of 800
images of four kinds, whose kind is not known: mirrored, turned by a quarter, inverted, upside down. Each layer is
frozen and gets an adapter B A of rank 4 (Hu et al. 2022). An image of the pool is worth as much as its gradient is
like that of some example (LESS, Xia et al. 2024), in the adapters alone, which are all that requires a gradient:

    max_m ⟨g_n, g_m⟩ / (‖g_n‖ ‖g_m‖),    n of the pool, m of the examples

``similarity`` replaces a backward pass for each image and the matrices [N, P] and [M, P] of what they give:

    rows = [flat(torch.autograd.grad(loss(model(x[None]), y[None]), adapters)) for x, y in pool]
    cosines = normalize(torch.stack(rows)) @ normalize(torch.stack(rows_of_examples)).T
"""

from math import nan
from statistics import mean

import torch
from torch import Tensor, nn
from training import BATCH, LOSS, Data, accuracy, by_row, digits, fit, seeds, table

import curvext as cx

RANK, EXAMPLES, EACH, CHOSEN, STEPS = 4, 30, 200, 200, 800
KINDS = {
    "mirrored": lambda x: x.flip(2),
    "quarter": lambda x: x.rot90(1, (1, 2)),
    "inverted": lambda x: 1 - x,
    "upside down": lambda x: x.rot90(2, (1, 2)),
}


class Adapted(nn.Module):
    """A frozen layer W and an adapter: W x + B A x."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.a.T @ self.b.T


def adapted(base: nn.Sequential, seed: int) -> nn.Module:
    """The network with an untrained adapter at each layer."""
    torch.manual_seed(seed)
    return nn.Sequential(*(Adapted(m) if isinstance(m, nn.Linear) else m for m in base))


def similarity(model: nn.Module, pool: Data, examples: Data) -> Tensor:
    """The largest cosine of each image's gradient with that of an example."""
    these = cx.EmpiricalFisherOperator(model, LOSS, pool)
    those = cx.EmpiricalFisherOperator(model, LOSS, examples)
    norms = these.gradient_norms().unsqueeze(1) * those.gradient_norms()
    return (these.gram(those) / norms).max(1).values


def turned(data: Data, kind: str) -> Data:
    """The images of one kind."""
    return KINDS[kind](data[0].view(-1, 8, 8)).reshape(-1, 64).contiguous(), data[1]


def joined(*several: Data) -> Data:
    """All of them."""
    return torch.cat([x for x, _ in several]), torch.cat([y for _, y in several])


def run(seed: int) -> dict[str, tuple[float, float]]:
    """{fine-tuned on: (how much of the pool's images are upside down, test accuracy upside down)}, in percent."""
    torch.manual_seed(seed)
    train, test = digits(seed)
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    parts = list(zip(*(t.split(EACH) for t in train), strict=True))
    base = fit(nn.Sequential(*layers), joined(*parts[4:]), 60, seed)
    pool = joined(*(turned(part, kind) for part, kind in zip(parts[:4], KINDS, strict=True)))
    test = turned(test, "upside down")
    examples, test = (
        (test[0][:EXAMPLES], test[1][:EXAMPLES]),
        (test[0][EXAMPLES:], test[1][EXAMPLES:]),
    )
    ranked = similarity(adapted(base, seed), pool, examples).argsort(descending=True)
    shuffled = torch.randperm(len(ranked))
    found = {"(not at all)": (nan, accuracy(base, test))}
    for name, chosen in (
        ("the examples", shuffled[:0]),
        ("and the whole pool", shuffled),
        ("and 200 at random", shuffled[:CHOSEN]),
        ("and 200 by gradient", ranked[:CHOSEN]),
    ):
        data = joined(examples, (pool[0][chosen], pool[1][chosen]))
        tuned = fit(adapted(base, seed), data, STEPS // -(-len(data[0]) // BATCH), seed)
        right = 100 * float((chosen >= 3 * EACH).double().mean()) if len(chosen) else nan
        found[name] = (right, accuracy(tuned, test))
    return found


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Accuracy upside down in percent, mean ± std, seeds: {len(runs)}")
    print(table(["fine-tuned on", "of that kind", "test accuracy"], rows))
    found = {name: mean(row[1]) for name, row in rows.items()}
    best = found.pop("and 200 by gradient")
    print(
        f"\nChosen by the adapters' gradients: {best - found['and 200 at random']:+.1f} points ",
        end="",
    )
    print(f"beside as many at random, {best - found['and the whole pool']:+.1f} beside the pool.")
    assert best > max(found.values()) + 1, "choosing by the adapters' gradients shows no benefit"


if __name__ == "__main__":
    main()
