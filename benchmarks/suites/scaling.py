"""The suite ``scaling``: how the cost grows with N, S, I, O, P, K and C, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import curvext as cx
from benchmarks.models.networks import Network
from benchmarks.peers import Ask, Call, curvext, curvlinops, pytorch
from benchmarks.record import Record, Row
from benchmarks.timing import interleaved

#: outputs of a position in the regression problems
OUTPUTS = 16
SWEEPS: dict[str, tuple[int, ...]] = {
    "N": (16, 64, 256, 1024),
    "S": (1, 4, 16, 64, 256),
    "I": (64, 256, 1024, 2048),
    "O": (64, 256, 1024, 2048),
    "P": (64, 128, 256, 512, 1024),
    "K": (1, 2, 4, 8, 16, 32),
    "C": (16, 128, 1024, 8192, 50304),
}
WORDS = {
    "N": "samples; S = 4, I = O = 256",
    "S": "positions of a sample; N = 32, I = O = 256",
    "I": "fan-in of the first layer; N = 64, S = 8, O = 256",
    "O": "fan-out of the first layer; N = 64, S = 8, I = 256",
    "P": "width I = O, so P is its square and a little; N = 64, S = 8",
    "K": "vectors in one block product; N = 64, S = 4, I = O = 256",
    "C": "classes of a linear layer after 64 inputs, cross-entropy; N = 64",
}


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    sweeps: tuple[str, ...] = tuple(SWEEPS)
    rounds: int = 9
    #: seconds for the rounds of one point
    budget: float = 1.5
    #: points of each curve, from the smallest
    points: int = 9


FULL = Effort()
QUICK = Effort(sweeps=("N", "S"), rounds=3, budget=0.3, points=3)


def regression(N: int, S: int, I: int, O: int) -> Network:
    """Two linear layers at each position, mean squared error."""
    model = nn.Sequential(nn.Linear(I, O), nn.Tanh(), nn.Linear(O, OUTPUTS))
    batch = (torch.randn(N, S, I), torch.randn(N, S, OUTPUTS))
    return Network("regression", model, nn.MSELoss(), batch)


def classification(N: int, C: int) -> Network:
    """One linear layer, cross-entropy: what is left is the output's work."""
    batch = (torch.randn(N, 64), torch.randint(C, (N,)))
    return Network("classification", nn.Linear(64, C), nn.CrossEntropyLoss(), batch)


def problem(sweep: str, value: int) -> Network:
    """The network of one point."""
    if sweep == "C":
        return classification(64, value)
    sizes = {
        "N": (value, 4, 256, 256),
        "S": (32, value, 256, 256),
        "I": (64, 8, value, 256),
        "O": (64, 8, 256, value),
        "P": (64, 8, value, value),
        "K": (64, 4, 256, 256),
    }[sweep]
    return regression(*sizes)


def calls(
    sweep: str, network: Network, columns: int
) -> Iterator[tuple[str, str, Callable[[], Call]]]:
    """(quantity, library, how to make it) of the curves of a sweep."""
    V = torch.randn(network.size, columns, device=network.device)
    asked = Ask(network, V[:, 0].contiguous(), V)
    model, loss, batch = network.model, network.loss, network.batch
    if sweep == "K":
        for letter, operator in curvext.OPERATORS.items():
            yield (
                f"{letter} V kept",
                "curvext",
                lambda o=operator: curvext.product(o, True, True)(asked),
            )
        for letter in ("H", "G"):
            yield (
                f"{letter} V",
                "curvlinops",
                lambda k=letter: curvlinops.product(k, "V")(asked),
            )
        return
    yield "gradient", "torch", lambda: lambda: pytorch.gradient(network)
    yield (
        "diag F_emp",
        "curvext",
        lambda: lambda: curvext.flat(cx.fisher_diagonal(model, loss, batch)),
    )
    yield "norms", "curvext", lambda: curvext.norms(asked)
    for letter, operator in curvext.OPERATORS.items():
        yield (
            f"{letter} v kept",
            "curvext",
            lambda o=operator: curvext.product(o, False, True)(asked),
        )


def run(record: Record, device: str, effort: Effort, say: Callable[[Row], None]) -> None:
    """The suite."""
    record.settings |= {
        "rounds": effort.rounds,
        "budget_s": effort.budget,
        "sweeps": {sweep: WORDS[sweep] for sweep in effort.sweeps},
    }
    for sweep in effort.sweeps:
        for value in SWEEPS[sweep][: effort.points]:
            torch.manual_seed(0)
            network = problem(sweep, value).to(device)
            made: dict[str, Call] = {}
            for quantity, library, make in calls(sweep, network, value if sweep == "K" else 1):
                where = {"sweep": sweep, "value": value, "quantity": quantity, "library": library}
                try:
                    call = make()
                    call()
                    made[f"{quantity}|{library}"] = call
                except Exception as failure:
                    record.failed(failure, **where)
            for key, t in interleaved(dict(made), effort.rounds, device, effort.budget).items():
                quantity, library = key.split("|")
                row = {
                    "sweep": sweep,
                    "value": value,
                    "parameters": network.size,
                    "quantity": quantity,
                    "library": library,
                    "milliseconds": 1e3 * t.median,
                    "lower": 1e3 * t.lower,
                    "upper": 1e3 * t.upper,
                    "shortest": 1e3 * t.shortest,
                    "rounds": t.rounds,
                }
                record.rows.append(row)
                say(row)
