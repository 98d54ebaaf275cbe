"""curvext itself: from scratch, and with the linearisation kept ("kept")."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import curvext as cx
from benchmarks.peers import Ask, Call, Entry, NotMeasured

LIBRARY = "curvext"
PACKAGE = None
#: an exact diagonal takes one backward pass for each of this many outputs of a sample, at most
MOST_OUTPUTS = 64


def risk(ask: Ask, cache: bool, compile: bool = False) -> cx.EmpiricalRisk:
    n = ask.network
    return cx.EmpiricalRisk(n.model, n.loss, n.batch, cache=cache, compile=compile)


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([block.reshape(-1) for block in named.values()])


def diagonal(kind: str) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        n = ask.network
        return lambda: flat(cx.fisher_diagonal(n.model, n.loss, n.batch, kind=kind))

    return make


def exact_diagonal(ask: Ask) -> Call:
    n = ask.network
    with torch.no_grad():
        outputs = n.model(n.batch[0][:1]).numel()
    if outputs > MOST_OUTPUTS:
        raise NotMeasured(f"exact: one backward pass for each of a sample's {outputs} outputs")
    return lambda: flat(cx.ggn_diagonal(n.model, n.loss, n.batch))


def norms(ask: Ask) -> Call:
    n = ask.network
    return lambda: cx.per_sample_gradient_norms(n.model, n.loss, n.batch)


def product(operator: str, block: bool, cache: bool) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        problem = risk(ask, cache)
        vectors = ask.V if block else ask.v
        if cache:
            return lambda: getattr(problem, operator)() @ vectors
        return lambda: getattr(risk(ask, False), operator)() @ vectors

    return make


def compiled(operator: str, cache: bool) -> Callable[[Ask], Call]:
    """One operator, as the trace belongs to it."""

    def make(ask: Ask) -> Call:
        product = getattr(risk(ask, cache, compile=True), operator)()
        return lambda: product @ ask.v

    return make


OPERATORS = {"H": "hessian", "G": "ggn", "F_emp": "empirical_fisher"}


def entries() -> list[Entry]:
    found = [
        Entry("diag F_emp", LIBRARY, "eager", diagonal("empirical")),
        Entry("diag F_mc", LIBRARY, "eager", diagonal("mc")),
        Entry("diag G", LIBRARY, "eager", exact_diagonal),
        Entry("norms", LIBRARY, "eager", norms),
    ]
    for letter, operator in OPERATORS.items():
        for vectors in ("v", "V"):
            for cache in (True, False):
                if (letter, vectors, cache) == ("F_emp", "V", False):
                    continue  # one gradient more than with the recorded uses kept
                quantity = f"{letter} {vectors}" + (" kept" if cache else "")
                found.append(
                    Entry(quantity, LIBRARY, "eager", product(operator, vectors == "V", cache))
                )
    for letter in ("H", "G"):
        for cache in (True, False):
            quantity = f"{letter} v" + (" kept" if cache else "")
            found.append(Entry(quantity, LIBRARY, "compiled", compiled(OPERATORS[letter], cache)))
    return found


def lanczos_operator(letter: str, ask: Ask) -> Callable[[Tensor], Tensor]:
    """What multiplies in a Lanczos run: the linearisation is part of the run."""
    operator = getattr(risk(ask, True), OPERATORS[letter])()
    return lambda v: operator @ v
