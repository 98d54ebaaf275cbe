"""What the three short examples share: the digits, a training loop, accuracy, and a table of means."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from math import isnan
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

LOSS = nn.CrossEntropyLoss()
BATCH = 64
TERMINAL = sys.stdout.isatty()  # progress bars belong on one, and in no log
Data = tuple[Tensor, Tensor]
Rows = dict[str, list[tuple[float, ...]]]


def seeds(default: int) -> range:
    """The seeds of this run: ``--seeds N``. One thread, which is enough for networks this small."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=default, help="how often everything is done")
    torch.set_num_threads(1)
    return range(parser.parse_args().seeds)


def digits(seed: int) -> tuple[Data, Data]:
    """The 8×8 digits as rows of 64 pixels in [0, 1]: three quarters to train on, the rest to test on."""
    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 3 * len(x) // 4], order[3 * len(x) // 4 :]
    return (x[train], y[train]), (x[test], y[test])


def only(data: Data, classes: Iterable[int]) -> Data:
    """The images of these classes."""
    keep = torch.isin(data[1], torch.tensor(list(classes)))
    return data[0][keep], data[1][keep]


def loader(data: Data) -> DataLoader:
    """The data in batches, in a fixed order."""
    return DataLoader(TensorDataset(*data), batch_size=BATCH)


def fit(
    model: nn.Module,
    data: Data,
    epochs: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
) -> nn.Module:
    """Adam on the cross-entropy, plus a penalty where there is one; trains ``model`` in place."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(data[0]), generator=shuffle).split(BATCH):
            optimiser.zero_grad()
            objective = LOSS(model(data[0][batch]), data[1][batch])
            (objective if penalty is None else objective + penalty()).backward()
            optimiser.step()
    return model


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of images, in percent, whose largest logit is the right one."""
    with torch.no_grad():
        return 100 * float((model(data[0]).argmax(1) == data[1]).double().mean())


def by_row(runs: Sequence[dict[str, tuple[float, ...]]]) -> Rows:
    """The runs of all seeds, {row: one value a column}, as {row: all values of each column}."""
    return {name: list(zip(*(run[name] for run in runs), strict=True)) for name in runs[0]}


def table(header: Sequence[str], rows: Rows) -> str:
    """A row for each name; a cell is the mean ± standard deviation of its values over the seeds."""
    cells = [[name, *map(_cell, row)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [header, ["─" * w for w in widths], *cells]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _cell(values: Sequence[float]) -> str:
    if any(map(isnan, values)):
        return "–"
    spread = f" ± {stdev(values):3.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
