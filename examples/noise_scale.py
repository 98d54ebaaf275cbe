"""How large a batch pays: the noise scale of the gradient, measured while training.

    python examples/noise_scale.py            (--seeds 1 for a quick look)

The simple noise scale tr Σ / ‖g‖² (McCandlish et al. 2018), with Σ the covariance of one sample's gradient and g the
mean, is about the batch size up to which a larger batch makes a step better, and beyond which it wastes samples. It
grows while a network learns. ``curvext.backward`` gives it on the way, from the norms of the samples' gradients in the
batch, in place of the gradients of two batch sizes, which is how it is commonly measured:

    part, whole = gradient(batch[: n // 2]), gradient(batch)           # one backward pass more
    variance = n * (part.norm() ** 2 - whole.norm() ** 2)

Both estimates of tr Σ are unbiased. That one is a difference of two numbers, each as noisy as the gradient; the norms
average over the batch. The table compares the noise scale that the loop measures with the exact one over all
images, and the typical error of either estimate of tr Σ from one batch. The loop averages over the last steps, so it
lags a little.
"""

from statistics import mean

import torch
from torch import Tensor, nn
from training import BATCH, LOSS, Data, by_row, digits, seeds, table

import curvext as cx

STATES = (60, 180, 360)  # steps
WINDOW = 60  # steps that the loop averages over
DRAWS = 100  # batches for the errors


def step(losses: Tensor, model: nn.Module) -> tuple[float, float]:
    """In place of ``losses.mean().backward()``: unbiased estimates of tr Σ and ‖g‖² from this batch."""
    n = len(losses)
    norms = cx.backward(losses, model, norms=True).norms
    whole = squared_norm(model)
    variance = (float(norms.square().mean()) - whole) * n / (n - 1)
    return variance, whole - variance / n


def squared_norm(model: nn.Module) -> float:
    """The squared norm of ``.grad``."""
    return float(sum(p.grad.square().sum() for p in model.parameters()))


def drawn_losses(model: nn.Module, data: Data) -> Tensor:
    """Of a random batch."""
    batch = torch.randint(len(data[0]), (BATCH,))
    return nn.functional.cross_entropy(model(data[0][batch]), data[1][batch], reduction="none")


def exact(model: nn.Module, data: Data) -> tuple[float, float]:
    """tr Σ and ‖g‖² over all images."""
    norms = cx.per_sample_gradient_norms(model, LOSS, data)
    signal = float(cx.EmpiricalRisk(model, LOSS, data).gradient().square().sum())
    return float(norms.square().mean()) - signal, signal


def errors(model: nn.Module, data: Data, variance: float) -> tuple[float, float]:
    """The root mean square error of tr Σ by norms and by two sizes, in percent."""
    by_norms, by_sizes = [], []
    for _ in range(DRAWS):
        losses = drawn_losses(model, data)
        model.zero_grad()
        losses[: BATCH // 2].mean().backward(retain_graph=True)
        part = squared_norm(model)
        model.zero_grad()
        by_norms.append(step(losses, model)[0] / variance - 1)
        by_sizes.append(BATCH * (part - squared_norm(model)) / variance - 1)
    return 100 * _rms(by_norms), 100 * _rms(by_sizes)


def _rms(values: list[float]) -> float:
    return mean(v * v for v in values) ** 0.5


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{state: (noise scale, as measured in the loop, error by norms, error by two sizes)}."""
    torch.manual_seed(seed)
    data, _ = digits(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser, rows, seen = torch.optim.SGD(model.parameters(), lr=0.2), {}, []
    for number in range(1, max(STATES) + 1):
        optimiser.zero_grad()
        seen.append(step(drawn_losses(model, data), model))
        optimiser.step()
        if number in STATES:
            variances, signals = zip(*seen[-WINDOW:], strict=True)
            variance, signal = exact(model, data)
            measured = sum(variances) / sum(signals)
            rows[f"step {number}"] = (
                variance / signal,
                measured,
                *errors(model, data, variance),
            )
    return rows


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"Batches of {BATCH}, mean ± std, seeds: {len(runs)}")
    header = ["", "noise scale", "in the loop", "% off, by norms", "% off, by two sizes"]
    print(table(header, rows))
    scale, loop, norms, sizes = ([mean(row[i]) for row in rows.values()] for i in range(4))
    print(f"\nThe batch that pays grows from {loop[0]:.0f} to {loop[-1]:.0f}. ", end="")
    print(f"Norms are {mean(sizes) / mean(norms):.1f} times as precise as two batch sizes.")
    assert 0.5 < loop[0] / scale[0] < 2 and loop[-1] > 1.5 * loop[0], "the loop is off"
    assert mean(sizes) > 1.5 * mean(norms), "norms are no more precise than two batch sizes"


if __name__ == "__main__":
    main()
