"""The suite ``kernels``: time, share of the hardware's floor, and error of every form of every kernel."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

import benchmarks.kernels
import curvext.kernels
from benchmarks.kernels import Case
from benchmarks.machine import limits
from benchmarks.record import Record, Row
from benchmarks.timing import interleaved


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    rounds: int = 15
    #: seconds for the rounds of one case
    budget: float = 3.0
    #: cases of each kernel; None for all
    cases: int | None = None
    #: cases of each kernel whose plain form is compiled, which takes seconds each
    compiled: int = 1


FULL = Effort()
QUICK = Effort(rounds=3, budget=0.2, cases=2, compiled=0)


def specifications() -> dict[str, ModuleType]:
    """The kernels' files by kernel: every kernel of the library that has one."""
    here = [m.name for m in pkgutil.iter_modules(benchmarks.kernels.__path__)]
    return {
        name: importlib.import_module(f"benchmarks.kernels.{name}")
        for name in sorted(here)
        if hasattr(curvext.kernels, name)
    }


def relative_error(answer: Tensor, exact: Tensor) -> float:
    """Largest error beside the largest value."""
    return float((answer.double() - exact).abs().max() / exact.abs().max())


def floor(case: Case, top: dict[str, float]) -> tuple[float, str]:
    """Seconds that the hardware needs at least, and what binds: "GEMM" or "copy"."""
    products = 1e-9 * case.flops / top["GEMM GFLOP/s"]
    copies = 1e-9 * case.traffic / top["copy GB/s"]
    return (products, "GEMM") if products > copies else (copies, "copy")


def measure_case(
    record: Record,
    kernel: str,
    case: Case,
    dtype: torch.dtype,
    device: str,
    effort: Effort,
    top: dict[str, float],
    compiled: bool,
) -> Iterator[Row]:
    """One row for each form of one case."""
    where = {"kernel": kernel, "problem": case.problem, "dtype": str(dtype).removeprefix("torch.")}
    forms: dict[str, Callable[..., Tensor]] = {"kernel": case.kernel}
    if case.plain is not None:
        forms["eager"] = case.plain
        if compiled and case.uncompilable:
            record.failed(case.uncompilable, **where, form="compiled")
        elif compiled:
            torch.compiler.reset()
            forms["compiled"] = torch.compile(case.plain, dynamic=False)
    else:
        record.failed("its intermediate does not fit in memory", **where, form="eager")
    forms.update(case.rivals)
    exact = case.exact(*(t.double() if t.is_floating_point() else t for t in case.inputs))
    errors: dict[str, float] = {}
    for name, form in forms.items():
        try:
            errors[name] = relative_error(form(*case.inputs), exact)
        except Exception as failure:  # what a form cannot do is reported, not left out
            record.failed(failure, **where, form=name)
    del exact
    forms.update(case.bounds)
    timed = [*errors, *case.bounds]
    calls = {name: (lambda f=forms[name]: f(*case.inputs)) for name in timed}
    again = (
        device == "cpu"
    )  # a result's memory is then what the form itself left, and not its neighbour
    times = interleaved(calls, effort.rounds, device, effort.budget, launched=True, again=again)
    seconds, bound = floor(case, top)
    for name, t in times.items():
        yield {
            **where,
            "form": name,
            "milliseconds": 1e3 * t.median,
            "lower": 1e3 * t.lower,
            "upper": 1e3 * t.upper,
            "shortest": 1e3 * t.shortest,
            "rounds": t.rounds,
            "of floor": seconds / t.median,
            "floor": bound,
            "GFLOP/s": 1e-9 * case.flops / t.median,
            "GB/s": 1e-9 * case.traffic / t.median,
            "error": errors.get(name),
        }


def rows_of_measure(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a file that has ``measure(device, dtype, rounds)`` in place of ``cases``: kernel and eager alone."""
    for row in rows:
        kept = {key: row[key] for key in ("kernel", "problem", "dtype", "milliseconds", "error")}
        yield {**kept, "form": "kernel"}
        if row.get("times eager"):
            yield {**kept, "form": "eager", "error": None} | {
                "milliseconds": row["milliseconds"] * row["times eager"]
            }


def run(
    record: Record,
    device: str,
    dtype: torch.dtype,
    effort: Effort,
    say: Callable[[Row], None],
    names: list[str] | None = None,
) -> None:
    """The suite, or the kernels named."""
    top = limits(device, dtype)
    record.settings |= {"rounds": effort.rounds, "budget_s": effort.budget, "limits": top}
    record.settings["calls_in_a_row"] = 2 if device == "cpu" else 1
    for name, specification in specifications().items():
        if names and name not in names:
            continue
        torch.manual_seed(0)
        if hasattr(specification, "cases"):
            for index, case in enumerate(specification.cases(device, dtype)):
                if index == effort.cases:
                    break
                found = measure_case(
                    record, name, case, dtype, device, effort, top, index < effort.compiled
                )
                for row in found:
                    record.rows.append(row)
                    say(row)
                del case
        else:
            for row in rows_of_measure(specification.measure(device, dtype, effort.rounds)):
                record.rows.append(row)
                say(row)
