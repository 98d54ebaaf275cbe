"""Train so that it is hard to tell which images were trained on: steps of DP-SGD, clipping and noise.

    python examples/private_training.py            (--seeds 1 for a quick look)

A network that is trained to the end gives its images away: their loss is smaller than that of images it has not seen,
above all where a label is wrong and has to be learned by heart, as a fifth of them is here. In a step of DP-SGD
(Abadi et al. 2016) each sample's gradient is clipped to a norm C, and Gaussian noise of σ C joins their sum, so that
what one image does is hidden. The lines of ``step`` replace

    for x_n, y_n in zip(x, y):                                # a backward pass for each sample
        g_n = torch.autograd.grad(loss(model(x_n[None]), y_n[None]), parameters)
        norm = torch.stack([g.norm() for g in g_n]).norm()
        ...                                                   # total += g_n * min(1, C / norm)

and are compared with them: the same gradient, and the time of both. What clipping and noise hide is measured by an
attack, which guesses by the loss whether an image was trained on: 50 is a coin's success, 100 certainty. The guarantee
(ε, δ) is for an accountant to state, and wants batches of Poisson sampling, which these are not.
"""

import time
from statistics import mean

import torch
from torch import Tensor, nn
from training import LOSS, Data, accuracy, by_row, digits, seeds, table

import curvext as cx

SEEN = 300  # images to train on
WRONG = 0.2  # share of their labels
STEPS, BATCH, CLIP = 400, 100, 0.5
ROWS = {"plain SGD": None, "clipped": 0.0, "clipped, noise 1": 1.0}  # and σ


def step(model: nn.Module, batch: Data, noise: float) -> None:
    """Fills ``.grad`` with that of a private step."""
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    cx.backward(losses, model, weights=lambda n: (CLIP / n).clamp(max=1) / len(n))
    for p in model.parameters():
        p.grad += noise * CLIP / len(losses) * torch.randn_like(p)


def step_by_samples(model: nn.Module, batch: Data) -> list[Tensor]:
    """The same without noise, by a backward pass for each sample."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(*batch, strict=True):
        gradients = torch.autograd.grad(LOSS(model(x[None]), y[None]), parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for t, g in zip(total, gradients, strict=True):
            t += g * (CLIP / norm).clamp(max=1) / len(batch[0])
    return total


def attack(model: nn.Module, seen: Data, unseen: Data) -> float:
    """How often, in percent, the loss of an image that was seen is below that of one that was not."""
    with torch.no_grad():
        one, other = (
            nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in (seen, unseen)
        )
    return 100 * float((one[:, None] < other).double().mean())


def train(seed: int, noise: float | None) -> tuple[float, float]:
    """(test accuracy, success of the attack), in percent."""
    torch.manual_seed(seed)
    (x, y), test = digits(seed)
    x, y, others = x[:SEEN], by_hand(y[:SEEN]), (test[0], by_hand(test[1]))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(STEPS):
        chosen = torch.randperm(SEEN)[:BATCH]
        optimiser.zero_grad()
        if noise is None:
            LOSS(model(x[chosen]), y[chosen]).backward()
        else:
            step(model, (x[chosen], y[chosen]), noise)
        optimiser.step()
    return accuracy(model, test), attack(model, (x, y), others)


def by_hand(y: Tensor) -> Tensor:
    """Labels of which some are wrong."""
    wrong = torch.rand(len(y)) < WRONG
    return torch.where(wrong, (y + torch.randint(1, 10, y.shape)) % 10, y)


def beside_a_loop() -> tuple[float, float]:
    """(time of a loop over samples in that of ``step``, largest difference of their gradients)."""
    torch.manual_seed(0)
    (x, y), _ = digits(0)
    model, batch = (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        (x[:256], y[:256]),
    )
    times = []
    for _ in range(3):  # the first warms up
        model.zero_grad()
        begin = time.perf_counter()
        step(model, batch, noise=0.0)
        middle = time.perf_counter()
        expected = step_by_samples(model, batch)
        times.append((time.perf_counter() - middle) / (middle - begin))
    found = [p.grad for p in model.parameters()]
    off = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
    return max(times[1:]), off


def main() -> None:
    runs = [{name: train(seed, noise) for name, noise in ROWS.items()} for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"{SEEN} digits, {STEPS} steps, C = {CLIP}; percent, mean ± std, seeds: {len(runs)}")
    print(table(["", "test accuracy", "attack succeeds"], rows))
    faster, off = beside_a_loop()
    print(
        f"\nThe gradient of a loop over 256 samples, to {off:.0e}, in 1/{faster:.0f} of its time."
    )
    plain, *_, private = ([mean(column) for column in row] for row in rows.values())
    more, less = private[0] - plain[0], plain[1] - private[1]
    print(f"Private steps take {less:.1f} points from the attack; accuracy {more:+.1f} points.")
    assert off < 1e-5 and faster > 3, "the step is not that of a loop over samples, or no faster"
    assert less > 5, "clipping and noise show no benefit"


if __name__ == "__main__":
    main()
