"""The suite ``proofs``: what it costs on each batch to know where samples lie, in gradients of the same run.

One network in three forms: as it is (samples are apart by structure), with its samples put into another order inside
(by indices), and with a function of its own that no rule knows (by backward passes). A gradient of each form stands
beside: what the order and the function cost without any proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import curvext as cx
from benchmarks.record import Record, Row
from benchmarks.timing import interleaved

FORMS = ("structure", "indices", "backward passes")
QUANTITIES = ("diagonal", "gradient_norms")


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    width: int = 1024
    #: with so many one scaled pass tells all samples apart in float32, or two do
    samples: tuple[int, ...] = (128, 512)
    rounds: int = 15
    budget: float = 30.0


FULL = Effort()
QUICK = Effort(width=64, samples=(32,), rounds=3, budget=0.3)


class _Unknown(torch.autograd.Function):
    """The identity, of which no rule knows that it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class _Network(nn.Module):
    def __init__(self, width: int, form: str) -> None:
        super().__init__()
        self.below = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, 10)
        self.form = form

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        h = self.below(x)
        if self.form == "indices":
            h = h[order][order.argsort()]
        if self.form == "backward passes":
            h = _Unknown.apply(h)
        return self.head(h)


def run(record: Record, device: str, effort: Effort, keep: Callable[[Row], None]) -> None:
    """Every quantity of every form, a new order for each call, in gradients of the plain network in the same run."""
    torch.manual_seed(0)
    for samples in effort.samples:
        timings = interleaved(
            _calls(device, effort.width, samples), effort.rounds, device, effort.budget, again=True
        )
        plain = timings[f"gradient {FORMS[0]}"].median
        for name, timing in timings.items():
            quantity, _, form = name.partition(" ")
            row: Row = {"N": samples, "quantity": quantity, "form": form}
            row |= {"gradients": timing.median / plain, "rounds": timing.rounds}
            row |= {"lower": timing.lower / plain, "upper": timing.upper / plain}
            record.rows.append(row)
            keep(row)


def _calls(device: str, width: int, samples: int) -> dict[str, Callable[[], object]]:
    """What is timed, by quantity and form."""
    loss = nn.CrossEntropyLoss()
    x = torch.randn(samples, 784, device=device)
    y = torch.randint(10, (samples,), device=device)
    calls: dict[str, Callable[[], object]] = {}
    for form in FORMS:
        model = _Network(width, form).to(device)

        def gradient(model: nn.Module = model) -> object:
            output = model(x, torch.randperm(samples, device=device))
            return torch.autograd.grad(loss(output, y), list(model.parameters()))

        calls[f"gradient {form}"] = gradient
        for quantity in QUANTITIES:

            def call(model: nn.Module = model, quantity: str = quantity) -> object:
                batch = ((x, torch.randperm(samples, device=device)), y)
                E = cx.EmpiricalFisherOperator(model, loss, batch, cache=False, forward=_forward)
                return getattr(E, quantity)()

            calls[f"{quantity} {form}"] = call
    return calls


def _forward(model: nn.Module, batch: Any) -> Tensor:
    output: Tensor = model(*batch[0])
    return output
