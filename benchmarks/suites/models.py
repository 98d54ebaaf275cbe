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
#: rounds of what takes long
SLOW_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    rounds: int = 15
    #: there are so many rounds at least, also where they take longer than the budget
    fewest: int = 5
    #: seconds for the rounds of one quantity
    budget: float = 8.0
    compiled: bool = True
    lanczos_steps: int = LANCZOS_STEPS
    lanczos_networks: tuple[str, ...] = LANCZOS
    #: what takes longer than so many gradients is timed apart, in few rounds; a quick run leaves it out
    slow: float = 10.0
    time_slow: bool = True
    blocks: tuple[str, ...] = BLOCKS


FULL = Effort()
QUICK = Effort(
    networks=("cnn", "gpt-small"),
    rounds=3,
    fewest=3,
    budget=0.5,
    compiled=False,
    lanczos_steps=4,
    lanczos_networks=("gpt-small",),
    slow=25.0,
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

            start = time.perf_counter()
            try:
                value = call()[-1].double()
            except Exception as failure:
                record.failed(failure, **where)
                continue
            took = time.perf_counter() - start
            key = f"Lanczos {letter}|{name}|eager"
            calls[key] = call
            error = float((value - exact).abs() / exact.abs())
            about[key] = {**where, "error": error, "first": took}
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


def groups(about: dict[str, Row], slow: Collection[str]) -> list[tuple[bool, list[str]]]:
    """What is compared with each other: the ways to one quantity, kept and from scratch, and whether they are slow."""
    found: dict[tuple[str, bool], list[str]] = {}
    for key, row in about.items():
        quantity = row["quantity"].removesuffix(" kept")
        found.setdefault((quantity, key in slow), []).append(key)
    return [(is_slow, keys) for (_, is_slow), keys in found.items()]


def measure(record: Record, network: Network, effort: Effort, say: Callable[[Row], None]) -> None:
    """All rows of one network: quantity by quantity, each beside the gradient that is its unit."""
    torch.compiler.reset()  # what was compiled for the last network; never while its calls are timed
    problem, device, unit = ask(network), network.device, "gradient|torch|eager"
    compiled = compiling(network.name) if effort.compiled else ()
    calls, about = prepare(record, problem, Truth(problem), compiled, network.name in effort.blocks)
    if network.name in effort.lanczos_networks:
        runs, words = lanczos_calls(record, problem, effort.lanczos_steps)
        calls, about = {**calls, **runs}, {**about, **words}
    looks = looks_at(calls, about, device)
    slow = {key for key in calls if looks[key] > effort.slow * looks[unit]}
    for is_slow, keys in groups(about, slow):
        if is_slow and not effort.time_slow:
            for key in keys:
                where = {k: about[key][k] for k in ("network", "quantity", "library", "mode")}
                words = f"{looks[key] / looks[unit]:.0f} gradients: left out of a quick run"
                record.failed(words, **where)
            continue
        beside = {unit: calls[unit], **{key: calls[key] for key in keys}}
        one_round = sum(looks[key] for key in beside)
        rounds, fewest = (SLOW_ROUNDS,) * 2 if is_slow else (effort.rounds, effort.fewest)
        times = interleaved(
            beside, rounds, device, effort.budget, one_round, again=True, fewest=fewest
        )
        for row in rows({key: about[key] for key in keys}, times, times[unit].median):
            record.rows.append(row)
            say(row)


def run(record: Record, device: str, effort: Effort, say: Callable[[Row], None]) -> None:
    """The suite."""
    record.settings |= {
        "rounds": effort.rounds,
        "fewest_rounds": effort.fewest,
        "budget_s": effort.budget,
        "lanczos_steps": effort.lanczos_steps,
        "columns": COLUMNS,
        "calls_in_a_row": 2,
        "networks": {name: {**NETWORKS, **LARGE}[name].__doc__ for name in effort.networks},
    }
    for name in effort.networks:
        measure(record, build(name, device), effort, say)
