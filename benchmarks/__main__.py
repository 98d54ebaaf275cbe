"""``python -m benchmarks``: every suite, then tables, pictures and the performance page.

python -m benchmarks [--quick]              all of it
python -m benchmarks kernels [names]        kernels beside PyTorch, torch.compile, rivals and the hardware's floor
python -m benchmarks models [names]         whole networks beside other libraries
python -m benchmarks scaling                cost by N, S, I, O, P, K, C
python -m benchmarks memory                 peak memory, each in a process of its own
python -m benchmarks training               what curvext.backward adds to a training step
python -m benchmarks laplace                the diagonals of laplace-torch's backends, beside ours
python -m benchmarks kronecker [names]      Kronecker factors, their inverses and eigenvalues, beside curvlinops
python -m benchmarks overhead [names]       the library's own work, on networks so small that it decides
python -m benchmarks proofs                 what it costs on each batch to know where samples lie
python -m benchmarks report                 JSON to tables, pictures and docs/performance.md
python -m benchmarks compare A.json B.json  what got slower by more than noise; exit status 1 if anything did
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import compare
from benchmarks.machine import cores, environment, machine
from benchmarks.record import QUICK_RESULTS, RESULTS, Record, Row, load
from benchmarks.report import page
from benchmarks.suites import (
    kernels,
    kronecker,
    laplace,
    memory,
    models,
    overhead,
    proofs,
    scaling,
    training,
)

SUITES = (
    "kernels",
    "models",
    "scaling",
    "memory",
    "proofs",
    "training",
    "laplace",
    "kronecker",
    "overhead",
)
#: seconds between two writes of a suite that is not done
SAVE_EVERY = 10.0
DTYPES = ("float64", "float32", "bfloat16", "float16")


def say(row: Row) -> None:
    """One row on one line."""
    words = []
    for key, value in row.items():
        if isinstance(value, float):
            words.append(f"{key}={value:.3g}")
        elif key in ("quantity", "library", "mode", "network", "kernel", "problem", "form"):
            words.append(str(value))
        elif value is not None:
            words.append(f"{key}={value}")
    print("  ".join(words), flush=True)


def effort(module: Any, options: argparse.Namespace) -> Any:
    """The suite's effort, with what the command line says in place of its own."""
    chosen = module.QUICK if options.quick else module.FULL
    if options.rounds is not None and hasattr(chosen, "rounds"):
        chosen = dataclasses.replace(chosen, rounds=options.rounds)
    if options.eager and hasattr(chosen, "compiled"):
        chosen = dataclasses.replace(chosen, compiled=type(chosen.compiled)(0))
    return chosen


def run_suite(name: str, options: argparse.Namespace) -> Record:
    """One suite, kept as JSON."""
    record = Record(name, environment(options.device))
    start = saved = time.perf_counter()
    print(f"== {name}", flush=True)
    if (busy := record.environment["load"]) and busy > 0.5 * cores():
        print(f"note: the load is {busy} on {cores()} cores; such figures are not fit to be kept")

    def keep(row: Row) -> None:
        nonlocal saved
        say(row)
        if time.perf_counter() > saved + SAVE_EVERY:  # what a run that is cut off leaves behind
            record.save(folder(options))
            saved = time.perf_counter()

    try:
        measure(name, record, options, keep)
    finally:  # an error of the device ends the run, and not what was measured before it
        record.seconds = time.perf_counter() - start
        record.settings["quick"] = options.quick
        path = record.save(folder(options))
    for failure in record.failures:
        print("not measured:", *(f"{value}" for value in failure.values()))
    print(f"== {name}: {len(record.rows)} rows, {record.seconds:.0f} s, in {path}", flush=True)
    return record


def measure(
    name: str, record: Record, options: argparse.Namespace, keep: Callable[[Row], None]
) -> None:
    """The rows of one suite, into its record."""
    if name == "kernels":
        dtype = getattr(torch, options.dtype)
        kernels.run(record, options.device, dtype, effort(kernels, options), keep, options.names)
    elif name == "models":
        chosen = effort(models, options)
        if options.names:
            chosen = dataclasses.replace(chosen, networks=tuple(options.names))
        models.run(record, options.device, chosen, keep)
    else:
        modules = {
            "scaling": scaling,
            "memory": memory,
            "proofs": proofs,
            "training": training,
            "laplace": laplace,
            "kronecker": kronecker,
            "overhead": overhead,
        }
        chosen = effort(modules[name], options)
        if name in ("training", "kronecker", "overhead") and options.names:
            chosen = dataclasses.replace(chosen, networks=tuple(options.names))
        modules[name].run(record, options.device, chosen, keep)


def folder(options: argparse.Namespace) -> Path:
    """Where this machine's results go; quick ones beside, where git does not look."""
    if options.out is not None:
        return options.out
    return (QUICK_RESULTS if options.quick else RESULTS) / machine(options.device)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command")

    def measuring(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--quick", action="store_true", help="under two minutes in all")
        command.add_argument("--rounds", type=int, help="at most so many rounds")
        command.add_argument("--eager", action="store_true", help="without torch.compile")
        command.add_argument("--dtype", default="float32", choices=DTYPES, help="of the kernels")
        command.add_argument(
            "--float32",
            default="highest",
            choices=("highest", "high", "medium"),
            help='of products in float32, as in torch.set_float32_matmul_precision; "high" is TF32 on CUDA',
        )
        command.add_argument("--out", type=Path, help="folder for the JSON")

    measuring(top)
    for name in SUITES:
        command = commands.add_parser(name)
        command.add_argument("names", nargs="*", help="kernels or networks; all by default")
        measuring(command)
    top.add_argument("--readme", action="store_true", help="quote this run in README")
    report = commands.add_parser("report")
    report.add_argument("--machine", help="the machine that README quotes")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # what libraries say at every call: a slow rule of vmap, a hook on an input without a gradient, an autocast
    known_warnings = (
        "There is a performance drop",
        "Full backward hook is firing",
        "In CPU autocast",
    )
    for known in known_warnings:
        warnings.filterwarnings("ignore", message=known)
    if options.command == "compare":
        outcome = compare(load(options.before), load(options.after))
        print(outcome)
        return 1 if outcome.slower else 0
    if options.command == "report":
        for path in page.write(options.machine):
            print(path)
        return 0
    torch.set_float32_matmul_precision(options.float32)
    if options.command:
        run_suite(options.command, options)
        return 0
    options.names = []
    for name in SUITES:
        run_suite(name, options)
    if not options.quick and options.out is None:
        for path in page.write(machine(options.device) if options.readme else None):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
