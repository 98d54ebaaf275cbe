"""The suite ``models``: every quantity of every network, by every library, in units of one gradient."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.models.networks import LARGE, NETWORKS, Network, build
from benchmarks.models.quantities import COLUMNS, LIBRARIES, Truth, ask, lanczos, missing
from benchmarks.peers import Ask, Call, Entry, NotMeasured, curvext
from benchmarks.record import Record, Row
from benchmarks.timing import Timing, interleaved, seconds_of

#: torch.compile takes tens of seconds for each entry, so it is asked of everybody on two networks,
#: and on those for a GPU, and of curvext on those that README quotes too
COMPILED = ("mlp", "gpt-small", *LARGE)
OWN_COMPILED = (*COMPILED, "cnn", "gpt")
#: fifty products a call: the networks where that is seconds
LANCZOS = ("mlp", "gpt-small")
LANCZOS_STEPS = 50
#: block products, likewise
BLOCKS = ("mlp", "cnn", "gpt-small", "gpt")


#: seconds after which one call is look enough
LONG = 10.0


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    rounds: int = 15
    #: seconds for the rounds of one network, of which there are three at least
    budget: float = 25.0
    compiled: bool = True
    lanczos_steps: int = LANCZOS_STEPS
    lanczos_networks: tuple[str, ...] = LANCZOS
    #: what takes longer than so many gradients is timed apart, in three rounds; a quick run leaves it out
    slow: float = 25.0
    time_slow: bool = True
    blocks: tuple[str, ...] = BLOCKS


FULL = Effort()
QUICK = Effort(
    networks=("cnn", "gpt-small"),
    rounds=3,
    budget=3.0,
    compiled=False,
    lanczos_steps=4,
    lanczos_networks=("gpt-small",),
    time_slow=False,
    blocks=(),
)


def compiling(network: str) -> set[str]:
    """The libraries whose compiled entries are asked for on a network."""
    if network in COMPILED:
        return {library.LIBRARY for library in LIBRARIES}
    return {curvext.LIBRARY} if network in OWN_COMPILED else set()


def entries(compiled: Collection[str], blocks: bool) -> list[tuple[Entry, str | None]]:
    """Every entry that is asked for, with the reason why it cannot be measured here.

    Args:
        compiled: the libraries whose compiled entries are asked for.
        blocks: whether blocks of vectors are.
    """
    return [
        (entry, missing(library))
        for library in LIBRARIES
        for entry in library.entries()
        if (library.LIBRARY in compiled or entry.mode != "compiled")
        and (blocks or " V" not in entry.quantity)
    ]


def prepare(
    record: Record, problem: Ask, truth: Truth, compiled: Collection[str], blocks: bool
) -> tuple[dict[str, Call], dict[str, Row]]:
    """The calls that work, and what is known of them before they are timed: their errors."""
    calls: dict[str, Call] = {}
    about: dict[str, Row] = {}
    for entry, absent in entries(compiled, blocks):
        where = {
            "network": problem.network.name,
            "quantity": entry.quantity,
            "library": entry.library,
            "mode": entry.mode,
        }
        if absent:
            record.failed(absent, **where)
            continue
        try:
            call = entry.make(problem)
            start = time.perf_counter()
            answer = call()
            took = time.perf_counter() - start
            error = truth.error(entry.truth or entry.quantity, answer)
        except Exception as failure:  # whatever a library raises is what is reported
            record.failed(str(failure) if isinstance(failure, NotMeasured) else failure, **where)
            continue
        print(f"{problem.network.name}: {entry.key} answers, first call {took:.2f} s", flush=True)
        calls[entry.key] = call
        about[entry.key] = {**where, "error": error, "first": took}
        if entry.truth and problem.network.classifier() is not problem.network:
            about[entry.key]["of"] = entry.truth  # with several positions it is another matrix
    return calls, about


def lanczos_calls(
    record: Record, problem: Ask, steps: int
) -> tuple[dict[str, Call], dict[str, Row]]:
    """A Lanczos run of H and G by every library; its error is that of the largest Ritz value."""
    calls: dict[str, Call] = {}
    about: dict[str, Row] = {}
    double = Ask(problem.network.to(dtype=torch.float64), problem.v.double(), problem.V.double())
    for letter in ("H", "G"):
        exact = lanczos(LIBRARIES[0].lanczos_operator(letter, double), double.v, steps)[-1]
        for library in LIBRARIES:
            if library is LIBRARIES[0] or not hasattr(library, "lanczos_operator"):
                continue
            name = library.LIBRARY
            where = {
                "network": problem.network.name,
                "quantity": f"Lanczos {letter}",
                "library": name,
                "mode": "eager",
            }
            if absent := missing(library):
                record.failed(absent, **where)
                continue

            def call(library: ModuleType = library, letter: str = letter) -> Tensor:
                return lanczos(library.lanczos_operator(letter, problem), problem.v, steps)

            try:
                value = call()[-1].double()
            except Exception as failure:
                record.failed(failure, **where)
                continue
            key = f"Lanczos {letter}|{name}|eager"
            calls[key] = call
            about[key] = {**where, "error": float((value - exact).abs() / exact.abs())}
    return calls, about


def rows(about: dict[str, Row], timings: dict[str, Timing], unit: float) -> list[Row]:
    """One row for each entry that was timed; a block's gradients are those for one of its columns."""
    found = []
    for key, row in about.items():
        t = timings[key]
        vectors = COLUMNS if " V" in row["quantity"] else 1
        each = unit * vectors
        found.append(
            {
                **{k: v for k, v in row.items() if k not in ("error", "first")},
                "vectors": vectors,
                "milliseconds": 1e3 * t.median,
                "gradients": t.median / each,
                "lower": t.lower / each,
                "upper": t.upper / each,
                "shortest": t.shortest / each,
                "rounds": t.rounds,
                "error": row["error"],
            }
        )
    return found


def looks_at(calls: dict[str, Call], about: dict[str, Row], device: str) -> dict[str, float]:
    """Seconds of the second call of each; what took very long tells by its first, if that did not compile."""
    return {
        key: about[key]["first"]
        if about[key]["first"] > LONG and about[key]["mode"] != "compiled"
        else seconds_of(call, device)
        for key, call in calls.items()
    }


def measure(record: Record, network: Network, effort: Effort, say: Callable[[Row], None]) -> None:
    """All rows of one network."""
    torch.compiler.reset()  # what was compiled for the last network; never while its calls are timed
    problem, device, unit = ask(network), network.device, "gradient|torch|eager"

    def keep(found: list[Row]) -> None:
        for row in found:
            record.rows.append(row)
            say(row)

    def apart(calls_of: dict[str, Call], words: dict[str, Row]) -> None:
        """Three rounds of what takes long, whose unit is the gradient beside it."""
        if calls_of:
            timed = interleaved({**calls_of, unit: calls[unit]}, 3, device, known=0.0, again=True)
            keep(rows(words, timed, timed[unit].median))

    compiled = compiling(network.name) if effort.compiled else ()
    calls, about = prepare(record, problem, Truth(problem), compiled, network.name in effort.blocks)
    looks = looks_at(calls, about, device)
    slow = [key for key in calls if looks[key] > effort.slow * looks[unit]]
    quick = {key: call for key, call in calls.items() if key not in slow}
    one_round = sum(looks[key] for key in quick)
    times = interleaved(quick, effort.rounds, device, effort.budget, one_round, again=True)
    keep(rows({key: about[key] for key in quick}, times, times[unit].median))
    if effort.time_slow:
        apart({key: calls[key] for key in slow}, {key: about[key] for key in slow})
    else:
        for key in slow:
            where = {k: about[key][k] for k in ("network", "quantity", "library", "mode")}
            record.failed(
                f"{looks[key] / looks[unit]:.0f} gradients: left out of a quick run", **where
            )
    if network.name in effort.lanczos_networks:
        apart(*lanczos_calls(record, problem, effort.lanczos_steps))


def run(record: Record, device: str, effort: Effort, say: Callable[[Row], None]) -> None:
    """The suite."""
    record.settings |= {
        "rounds": effort.rounds,
        "budget_s": effort.budget,
        "lanczos_steps": effort.lanczos_steps,
        "columns": COLUMNS,
        "calls_in_a_row": 2,
        "networks": {name: {**NETWORKS, **LARGE}[name].__doc__ for name in effort.networks},
    }
    for name in effort.networks:
        measure(record, build(name, device), effort, say)
