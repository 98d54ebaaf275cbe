"""The command line: ``curvext info`` shows what is installed, ``curvext build`` compiles the kernels,
``curvext check`` recomputes a risk with plain PyTorch, ``curvext report`` writes a page on it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import curvext
from curvext import _build, _extension
from curvext.report import as_html, as_json, measure
from curvext.report.demo import digits
from curvext.risk import EmpiricalRisk


class RefusedError(ValueError):
    """The command cannot be carried out; the message says why."""


def describe() -> str:
    """One line per fact: versions, the extension or why it is missing, instruction set, architectures, threads."""
    info = _extension.build_info()
    rows = {"curvext": curvext.__version__, "torch": torch.__version__}
    if info is None:
        rows["extension"] = (
            f"missing ({_extension.missing_because}); build it: {_extension.BUILD_COMMAND}"
        )
    else:
        assert _extension.module is not None
        levels = ", ".join(_extension.module.cpu.simd_levels())
        rows["extension"] = f"built by {info['compiler']} against torch {info['torch']}"
        rows["simd"] = f"{info['simd']} (this processor runs {levels})"
        rows["products"] = "by tiles" if info["products_by_tiles"] else "by the library"
        rows["openmp"] = str(info["openmp"])
        rows["cuda"] = f"{info['cuda']} for {info['cuda_arch']}" if info["cuda"] else "not built"
    rows["threads"] = str(torch.get_num_threads())
    return "\n".join(f"{name:10} {value}" for name, value in rows.items())


def risk_of(target: str) -> EmpiricalRisk:
    """The risk that a user's function returns.

    Args:
        target: "module:function", found from the current folder.

    Raises:
        RefusedError: it is not of that form, there is no such function, or it returns no EmpiricalRisk.
    """
    name, colon, function = target.partition(":")
    if not (name and colon and function):
        raise RefusedError(f"expected module:function, got {target!r}")
    if os.getcwd() not in sys.path:  # as python -m does it
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:  # a module of the user's own lacks another
            raise
        raise RefusedError(f"there is no module {name!r} here or on the path") from missing
    if not callable(getattr(module, function, None)):
        raise RefusedError(f"{name} has no function {function!r}")
    risk = getattr(module, function)()
    if not isinstance(risk, EmpiricalRisk):
        raise RefusedError(
            f"{target} must return a curvext.EmpiricalRisk, it returned {type(risk).__name__}"
        )
    return risk


def at_least(least: int) -> Callable[[str], int]:
    """A parser of integers that are at least ``least``."""

    def read(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")

    return read


def say(words: str) -> None:
    """Reports progress on stderr."""
    print(f"{words} ...", file=sys.stderr, flush=True)


def _asked_for(options: argparse.Namespace) -> EmpiricalRisk:
    """The risk of the demo or of the user's function.

    Raises:
        RefusedError: neither or both are asked for, or there is none.
    """
    if options.demo == bool(options.target):
        raise RefusedError("expected either module:function or --demo")
    if not options.demo:
        return risk_of(options.target)
    try:
        return digits()
    except ImportError as missing:
        raise RefusedError(str(missing)) from missing


def print_check(options: argparse.Namespace) -> bool:
    """Recomputes with plain PyTorch, prints the table, and returns whether everything agrees."""
    risk = _asked_for(options)
    result = risk.check(options.samples, options.vectors, options.seed)
    print(result)
    return result.ok


def write_report(options: argparse.Namespace) -> None:
    """Measures and writes the page, with progress on stderr."""
    path = Path(options.output)
    if path.suffix not in (".html", ".json"):
        raise RefusedError(
            f"-o: expected a file name that ends in .html or .json, got {path.name!r}"
        )
    if not path.parent.is_dir():
        raise RefusedError(f"-o: there is no folder {str(path.parent)!r}")
    title = "a network on handwritten digits" if options.demo else options.target

    say("the risk")
    began = dist.is_available() and dist.is_initialized()
    risk = _asked_for(options)
    if risk.group.alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RefusedError(
            f"{title} returned a risk of one process, and {os.environ['WORLD_SIZE']} were started: the function calls "
            "torch.distributed.init_process_group and passes process_group= to EmpiricalRisk, with its own shard of "
            "the data"
        )
    first = risk.group.rank == 0
    report = measure(
        risk,
        title=title,
        leading=options.leading,
        probes=options.probes,
        density_steps=options.steps,
        seed=options.seed,
        say=say if first else lambda words: None,
    )
    if first:
        path.write_text(as_html(report) if path.suffix == ".html" else as_json(report), "utf-8")
        print(path)
    if not risk.group.alone and not began:
        dist.destroy_process_group()  # the function of the user made it for this command


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are those of the process unless given."""
    parser = argparse.ArgumentParser(prog="curvext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parser.add_argument("--version", action="version", version=f"curvext {curvext.__version__}")
    commands.add_parser("info", help="versions, build and hardware")
    build = commands.add_parser("build", help="compile the native kernels for the installed torch")
    build.add_argument(
        "-j",
        "--jobs",
        type=at_least(1),
        help="files compiled at a time; all processors unless given",
    )
    check = commands.add_parser("check", help="recompute a risk's quantities by plain PyTorch")
    report = commands.add_parser("report", help="a page on the curvature of a risk")
    for command in (check, report):
        command.add_argument(
            "target", nargs="?", help="module:function, which returns an EmpiricalRisk"
        )
        command.add_argument("--demo", action="store_true", help="a small network on digits")
        command.add_argument("--seed", type=int, default=0, help="of all random numbers")
    report.add_argument("-o", "--output", default="report.html", help="a file .html or .json")
    for command, name, least, default, words in (
        (check, "--samples", 1, 8, "samples, and entries of diagonals, that are looked at"),
        (check, "--vectors", 1, 2, "random vectors that the matrices multiply"),
        (report, "--leading", 1, 5, "eigenvalues of each matrix"),
        (report, "--probes", 2, 16, "random vectors for norms and traces"),
        (report, "--steps", 1, 60, "Lanczos steps of each density"),
    ):
        command.add_argument(name, type=at_least(least), default=default, help=words)
    options = parser.parse_args(arguments)
    if options.command == "info":
        print(describe())
        return
    if options.command == "build":
        try:
            _build.build(lambda line: print(line, flush=True), options.jobs)
        except _build.BuildError as error:
            build.exit(1, f"curvext build: {error}\n")
        return
    command = check if options.command == "check" else report
    try:
        if options.command == "report":
            write_report(options)
        elif not print_check(options):
            sys.exit(1)
    except RefusedError as error:
        command.exit(2, f"{command.prog}: {error}\n")


if __name__ == "__main__":
    main()
