"""Quantise a language model to two or three bits a weight, and change it less: k-means weighted by the Fisher diagonal.

    python examples/fisher_quantisation.py            (--seeds 1 for a quick look)

A language model reads Python's own help texts, character by character. Then each row of each linear layer keeps a
codebook of 2^bits values, and each weight the number of one of them. k-means puts the values where the weights are. But
moving weight i by δ_i changes the predictions by about ½ Σ_i F_i δ_i², measured as Kullback-Leibler divergence; so
SqueezeLLM (Kim et al. 2024) takes F as the weights of k-means, and spends the codebook on the weights that the
predictions depend on. The call of ``curvext`` in ``run`` replaces a backward pass for each text:

    for text in texts:
        gradients = torch.autograd.grad(loss(model(text[None]), text[None]), weights)
        for f, g in zip(fisher, gradients):
            f += g**2 / len(texts)
"""

from statistics import mean

import torch
from text import LOSS, LanguageModel, learn, prose, windows
from torch import Tensor, nn
from training import by_row, seeds, table

import curvext as cx

BITS = (3, 2)
WIDTH, LAYERS, HEADS, LENGTH = 48, 1, 4, 32
STEPS, BATCH, CALIBRATION = 200, 32, 1024
ROUNDS = 30  # of k-means


def codebooks(rows: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Each row by its nearest of 2^bits values, which minimise Σ_i weights_i (row_i − value)² (Lloyd's k-means).

    Args:
        rows, weights: ``[R, I]``.
        bits: of an index.
    """
    weights = weights + 1e-6 * weights.mean(
        1, keepdim=True
    )  # a codebook for rows that nobody needs
    order = rows.argsort(1)
    mass = weights.gather(1, order).cumsum(1)
    shares = (torch.arange(2**bits) + 0.5) / 2**bits
    place = torch.searchsorted(mass, shares * mass[:, -1:]).clamp(max=rows.shape[1] - 1)
    values = rows.gather(1, order.gather(1, place))
    for _ in range(ROUNDS):
        nearest = (rows.unsqueeze(2) - values.unsqueeze(1)).abs().argmin(2)
        total = torch.zeros_like(values).scatter_add_(1, nearest, weights)
        sums = torch.zeros_like(values).scatter_add_(1, nearest, weights * rows)
        values = torch.where(total > 0, sums / total, values)
    nearest = (rows.unsqueeze(2) - values.unsqueeze(1)).abs().argmin(2)
    return values.gather(1, nearest)


def linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices that are quantised."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items()}


def divergence(model: nn.Module, weights: dict[str, Tensor], bits: int, texts: Tensor) -> float:
    """KL(p ‖ p of the quantised model) for each character, in thousandths of a nat; the model is left as it is."""
    replaced = {
        name: codebooks(w.detach(), weights[name], bits)
        for name, w in linear_weights(model).items()
    }
    with torch.no_grad():
        p = model(texts).log_softmax(-1)
        q = torch.func.functional_call(model, replaced, texts).log_softmax(-1)
    return 1e3 * float((p.exp() * (p - q)).sum(-1).mean())


def run(seed: int) -> dict[str, tuple[float, ...]]:
    """{weights of k-means: the divergence for each number of bits}."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    text = prose()
    train, held_out = text[: 9 * len(text) // 10], text[9 * len(text) // 10 :]
    model = LanguageModel(WIDTH, LAYERS, HEADS, LENGTH)
    learn(model, lambda: windows(train, BATCH, LENGTH, draw), STEPS)
    texts, test = (windows(t, CALIBRATION, LENGTH, draw) for t in (train, held_out))
    matrices = linear_weights(model)
    weights = {
        "k-means": {name: torch.ones_like(w) for name, w in matrices.items()},
        "by Fisher": cx.fisher_diagonal(model, LOSS, (texts, texts), params=list(matrices)),
    }
    return {
        name: tuple(divergence(model, these, bits, test) for bits in BITS)
        for name, these in weights.items()
    }


def main() -> None:
    runs = [run(seed) for seed in seeds(default=5)]
    rows = by_row(runs)
    print("Divergence of the quantised model's predictions from its own before, in thousandths")
    print(f"of a nat for each character of held-out text, mean ± std, seeds: {len(runs)}")
    print(table(["", *(f"{bits} bits" for bits in BITS)], rows))
    plain, fisher = ([mean(column) for column in row] for row in rows.values())
    less = [100 * (ours / theirs - 1) for ours, theirs in zip(fisher, plain, strict=True)]
    words = ", ".join(f"{s:+.0f}% with {bits} bits" for s, bits in zip(less, BITS, strict=True))
    print(f"\nWeighted by Fisher, k-means changes predictions by {words}.")
    assert less[-1] < -3, "weighting by the Fisher diagonal shows no benefit"


if __name__ == "__main__":
    main()
