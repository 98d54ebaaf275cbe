"""curvlinops: every product is a vmapped matmat through torch.func; nothing is kept between products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import Ask, Call, Entry

LIBRARY = "curvlinops"
PACKAGE = "curvlinops-for-pytorch"
OPERATORS = {
    "H": "HessianLinearOperator",
    "G": "GGNLinearOperator",
    "F_emp": "EFLinearOperator",
}


def operator(letter: str, ask: Ask) -> Any:
    import curvlinops

    network = ask.network.classifier()
    kind = getattr(curvlinops, OPERATORS[letter])
    parameters = list(network.model.parameters())
    # the probe for randomness costs two passes at set-up, and is no part of a product
    return kind(network.model, network.loss, parameters, [network.batch], check_deterministic=False)


def product(letter: str, vectors: str) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        linear, v = operator(letter, ask), getattr(ask, vectors)

        def call() -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # the fused one has no forward-mode rule
                return (linear @ v).detach()

        return call

    return make


def compiled(letter: str) -> Callable[[Ask], Call]:
    """Its product of one batch compiled, as one graph: in parts it would be the eager one under another name."""

    def make(ask: Ask) -> Call:
        linear = operator(letter, ask)
        linear._mp = torch.compile(linear._mp, dynamic=False, fullgraph=True)

        def call() -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return (linear @ ask.v).detach()

        return call

    return make


def entries() -> list[Entry]:
    # its empirical Fisher matrix counts each token as a datum of its own
    truth = {"F_emp": "F_emp v per token"}
    found = [Entry(f"{k} v", LIBRARY, "eager", product(k, "v"), truth.get(k)) for k in OPERATORS]
    found += [Entry(f"{k} V", LIBRARY, "eager", product(k, "V")) for k in ("H", "G")]
    found += [Entry(f"{k} v", LIBRARY, "compiled", compiled(k), truth.get(k)) for k in OPERATORS]
    return found


def lanczos_operator(letter: str, ask: Ask) -> Callable[[Tensor], Tensor]:
    linear = operator(letter, ask)

    def multiply(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return (linear @ v).detach()

    return multiply
