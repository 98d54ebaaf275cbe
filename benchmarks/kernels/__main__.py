"""``python -m benchmarks.kernels``: every kernel's table, and the same as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.kernels import (
    mse_hessian_mm,
    mse_sample,
    outer_dot,
    outer_gram,
    outer_norm,
    outer_square,
    outer_sum,
    sigmoid_hessian_mm,
    sigmoid_sample,
    softmax_hessian_mm,
    softmax_residual,
    softmax_root_mm,
    softmax_root_t_mm,
    softmax_sample,
)
from benchmarks.timing import environment

KERNELS = {
    "mse_hessian_mm": mse_hessian_mm,
    "mse_sample": mse_sample,
    "outer_dot": outer_dot,
    "outer_gram": outer_gram,
    "outer_norm": outer_norm,
    "outer_square": outer_square,
    "outer_sum": outer_sum,
    "sigmoid_hessian_mm": sigmoid_hessian_mm,
    "sigmoid_sample": sigmoid_sample,
    "softmax_hessian_mm": softmax_hessian_mm,
    "softmax_residual": softmax_residual,
    "softmax_root_mm": softmax_root_mm,
    "softmax_root_t_mm": softmax_root_t_mm,
    "softmax_sample": softmax_sample,
}


def cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_row(row: dict[str, object], header: bool) -> None:
    widths = {
        name: max(len(name), 26 if name == "problem" else 10) for name in row if name != "kernel"
    }
    if header:
        print("\n" + str(row["kernel"]))
        print("  ".join(name.rjust(width) for name, width in widths.items()))
    print("  ".join(cell(row[name]).rjust(width) for name, width in widths.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("names", nargs="*", help="kernels to run; all of them by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    for name in options.names or KERNELS:
        header = True
        for row in KERNELS[name].measure(
            options.device, getattr(torch, options.dtype), options.rounds
        ):
            print_row(row, header)
            rows.append(row)
            header = False
    if options.json:
        record = {
            "environment": environment(options.device),
            "rounds": options.rounds,
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
