"""``python -m benchmarks.models``: seconds in units of one gradient of the same run, and the error beside float64."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import curvext as cx
from benchmarks.models.networks import NETWORKS, Network
from benchmarks.timing import environment, interleaved

Quantity = Callable[[], Tensor]


def quantities(network: Network, v: Tensor) -> dict[str, Quantity]:
    """What is timed, by name; the first is the unit."""
    model, loss, batch = network.model, network.loss, network.batch
    parameters = list(model.parameters())
    kept = cx.EmpiricalRisk(model, loss, batch, cache=True)
    fresh = cx.EmpiricalRisk(model, loss, batch, cache=False)

    def gradient() -> Tensor:
        blocks = torch.autograd.grad(loss(model(batch[0]), batch[1]), parameters)
        return torch.cat([block.reshape(-1) for block in blocks])

    def diagonal() -> Tensor:
        blocks = cx.fisher_diagonal(model, loss, batch).values()
        return torch.cat([block.reshape(-1) for block in blocks])

    return {
        "gradient": gradient,
        "diag F_emp": diagonal,
        "norms": lambda: cx.per_sample_gradient_norms(model, loss, batch),
        "F_emp v kept": lambda: kept.empirical_fisher() @ v,
        "F_emp v": lambda: fresh.empirical_fisher() @ v,
        "G v kept": lambda: kept.ggn() @ v,
        "G v": lambda: fresh.ggn() @ v,
        "H v kept": lambda: kept.hessian() @ v,
        "H v": lambda: fresh.hessian() @ v,
    }


def in_double(network: Network) -> Network:
    """The same in float64, the truth that errors are measured against."""
    x, y = network.batch
    batch = (x.double() if x.is_floating_point() else x, y)
    return Network(copy.deepcopy(network.model).double(), network.loss, batch)


def measure(name: str, rounds: int) -> list[dict[str, object]]:
    """One row for each quantity."""
    network = NETWORKS[name]()
    size = sum(p.numel() for p in network.model.parameters())
    v = torch.randn(size)
    calls = quantities(network, v)
    truth = {k: q() for k, q in quantities(in_double(network), v.double()).items()}
    errors = {
        k: float((q().double() - truth[k]).norm() / truth[k].norm()) for k, q in calls.items()
    }
    timings = interleaved(dict(calls), rounds)
    unit = timings["gradient"].median
    return [
        {
            "network": name,
            "quantity": k,
            "milliseconds": 1e3 * t.median,
            "gradients": t.median / unit,
            "lower": t.lower / unit,
            "upper": t.upper / unit,
            "error": errors[k],
        }
        for k, t in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    print("network  quantity       gradients  (quartiles)     relative error")
    for name in options.names or NETWORKS:
        for row in measure(name, options.rounds):
            rows.append(row)
            print(
                f"{name:<8} {row['quantity']:<14} {row['gradients']:9.2f}  "
                f"({row['lower']:.2f}-{row['upper']:.2f})     {row['error']:.1e}",
                flush=True,
            )
    if options.json:
        record = {"environment": environment("cpu"), "rounds": options.rounds, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
