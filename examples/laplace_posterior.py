"""A Laplace posterior by K-FAC: how sure may a network be, on its own kind of images and on noisy ones?

    python examples/laplace_posterior.py            (--seeds 1 for a quick look)

A network learns 300 of scikit-learn's digits by heart and is too sure of itself. The Laplace approximation takes the
parameters for a draw from N(θ, (N B + δI)⁻¹), with B the K-FAC factors of the Fisher matrix of the mean loss (Ritter,
Botev & Barber 2018). Predictions are averaged over 50 draws of the network linearised at θ (Immer et al. 2021):

    p(y|x) = mean over δθ of softmax(f(x) + J(x) δθ)

The precision δ of the prior is the one of several with the lowest log loss on 200 held-out images. Then both are
tested on the rest of the test images, clean and with noise on their pixels: by the log loss, and by the expected
calibration error, the mean gap between confidence and accuracy over ten bins of confidence.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from training import LOSS, Data, by_row, digits, fit, seeds, table

import curvext as cx

TRAINED, ASIDE, EPOCHS, DRAWS = 300, 200, 600, 50
PRECISIONS = (10.0, 30.0, 100.0, 300.0)  # δ
NOISE = 0.4  # of pixels between 0 and 1


def predictive(model: nn.Module, K: cx.KFACOperator, precision: float, x: Tensor) -> Tensor:
    """Mean probabilities of the linearised network under the posterior, ``[N, C]``."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    # (N B + δI)⁻¹ = (B + δ/N I)⁻¹ / N
    draws = K.sample(DRAWS, damping=precision / TRAINED) / math.sqrt(TRAINED)

    def output(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (x,))

    total = torch.zeros(len(x), 10)
    for draw in draws.T:
        value, change = jvp(output, (theta,), (K.split(draw),))
        total += (value + change).softmax(1)
    return total / DRAWS


def log_loss(p: Tensor, y: Tensor) -> float:
    return float(-p.gather(1, y.unsqueeze(1)).log().mean())


def calibration_error(p: Tensor, y: Tensor) -> float:
    """Σ over bins of (share of the images) · |accuracy − confidence|, in percent."""
    confidence, label = p.max(1)
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [
        abs(float((label == y)[bins == b].double().sum() - confidence[bins == b].double().sum()))
        for b in range(10)
    ]
    return 100 * sum(gaps) / len(y)


def measures(p: Tensor, noisy: Tensor, y: Tensor) -> tuple[float, ...]:
    return (
        100 * log_loss(p, y),
        calibration_error(p, y),
        100 * log_loss(noisy, y),
        calibration_error(noisy, y),
    )


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{prediction: log loss and calibration error, then those with noise}."""
    torch.manual_seed(seed)
    (x, y), test = digits(seed)
    train: Data = (x[:TRAINED], y[:TRAINED])
    aside, (x, y) = (test[0][:ASIDE], test[1][:ASIDE]), (test[0][ASIDE:], test[1][ASIDE:])
    noisy = x + NOISE * torch.randn_like(x)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    fit(model, train, EPOCHS, seed)
    K = cx.EmpiricalRisk(model, LOSS, train).kfac(kind="exact")
    precision = min(PRECISIONS, key=lambda d: log_loss(predictive(model, K, d, aside[0]), aside[1]))
    with torch.no_grad():
        own = [model(images).softmax(1) for images in (x, noisy)]
    averaged = [predictive(model, K, precision, images) for images in (x, noisy)]
    return {
        "the network": measures(*own, y),
        "Laplace by K-FAC": measures(*averaged, y),
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print(f"In percent, mean ± std, seeds: {len(runs)}")
    header = ["", "log loss", "calibration", "log loss, noise", "calibration, noise"]
    print(table(header, rows))
    network, laplace = ([sum(column) / len(column) for column in rows[name]] for name in rows)
    gain = [100 * (1 - after / before) for before, after in zip(network, laplace, strict=True)]
    print(f"\nLaplace lowers the calibration error by {gain[1]:.0f}%, ", end="")
    print(f"and by {gain[3]:.0f}% under noise; ", end="")
    print(f"the log loss by {gain[0]:.0f}% and {gain[2]:.0f}%.")
    assert min(gain) > 0, "the posterior shows no benefit"


if __name__ == "__main__":
    main()
