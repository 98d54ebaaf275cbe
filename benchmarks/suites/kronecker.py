"""The suite ``kronecker``: what Kronecker factors cost, from data to the inverse applied, in gradients of the same run.

Of a language model without its head, whose side is longer than ``max_dim`` would be in practice. curvlinops' K-FAC
stands beside, of the parameters that it takes: weights and biases of linear layers and two-dimensional convolutions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvext as cx
from benchmarks.models.networks import Network, build
from benchmarks.record import Record, Row
from benchmarks.timing import interleaved
from curvext.kronecker.factored import KeptBlocks

GRADIENT = "gradient"
#: λ of the inverse
DAMPING = 1e-2
#: of one label for each datum, without which curvext's products and curvlinops' would be of other draws
KIND = "empirical"

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = ("mlp", "cnn", "gpt")
    rounds: int = 15
    budget: float = 60.0


FULL = Effort()
QUICK = Effort(("mlp",), rounds=3, budget=1.0)


def chosen(network: Network) -> list[str]:
    """The names of the parameters: all but a language model's head."""
    head = "head.weight" if isinstance(network.loss, cx.CausalLMLoss) else None
    return [name for name, _ in network.model.named_parameters() if name != head]


def gradient(network: Network) -> Call:
    """One gradient by the same parameters."""
    named = dict(network.model.named_parameters())
    parameters = [named[name] for name in chosen(network)]
    x, y = network.batch

    def call() -> object:
        return torch.autograd.grad(network.loss(network.model(x), y), parameters)

    return call


def own_calls(network: Network) -> dict[str, Call]:
    """curvext's: each makes anew what its name says, of what came before it."""

    def risk(cache: bool) -> cx.EmpiricalRisk:
        return cx.EmpiricalRisk(
            network.model, network.loss, network.batch, chosen(network), cache=cache
        )

    scratch, kept = risk(False), risk(True)
    empirical = kept.empirical_fisher()
    empirical.matvec(torch.zeros(kept.space.size, device=network.device))  # which keeps records
    K = kept.kfac(kind=KIND)
    blocks = list(K.blocks.values())
    K.eigenvalues()  # the eigenbases, for the calls that begin with them
    inverse, v = K.inverse(DAMPING), torch.randn(kept.space.size, device=network.device)

    def made_inverse() -> object:
        for block in blocks:
            vars(block).pop("spectral", None)
        return KeptBlocks(kept.space, blocks, K.dtype).inverse(DAMPING)

    return {
        "factors": scratch.kfac(kind=KIND)._make,
        "factors, one drawn label": scratch.kfac(kind="mc")._make,
        "factors, reduce": scratch.kfac(kind=KIND, approx="reduce")._make,
        "factors on kept records": K._make,
        "Λ in given bases": kept.ekfac(kind=KIND)._make,
        "Shampoo's L and R": scratch.shampoo(kind=KIND)._make,
        "inverse of factors": made_inverse,
        "inverse applied": lambda: inverse @ v,
    }


def their_calls(network: Network) -> dict[str, Call]:
    """curvlinops': the quantities that it has, of the layers that it takes."""
    import curvlinops

    network = network.classifier()
    modules = {name: m for name, m in network.model.named_modules() if not name.endswith("head")}
    parameters = [
        p
        for m in modules.values()
        if isinstance(m, (nn.Linear, nn.Conv2d))
        for p in m.parameters(recurse=False)
    ]

    def operator(kind: Any, **options: object) -> Any:
        return kind(
            network.model,
            network.loss,
            parameters,
            [network.batch],
            check_deterministic=False,
            fisher_type="empirical",
            separate_weight_and_bias=False,
            **options,
        )

    def factors(**options: object) -> Call:
        def call() -> object:
            with sdpa_kernel(SDPBackend.MATH):
                return operator(
                    curvlinops.KFACLinearOperator, **options
                ).compute_kronecker_factors()

        return call

    v = torch.randn(sum(p.numel() for p in parameters), device=network.device)
    found = {"factors": factors(), "factors, reduce": factors(kfac_approx="reduce")}
    with sdpa_kernel(SDPBackend.MATH):
        K = operator(curvlinops.KFACLinearOperator)
        inverse = curvlinops.KFACInverseLinearOperator(K, damping=DAMPING, use_exact_damping=True)
        inverse @ v
        found["inverse applied"] = lambda: inverse @ v
    corrections: list[Any] = []  # made by the first call, which may refuse the network

    def corrected() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            if not corrections:
                corrections.append(operator(curvlinops.EKFACLinearOperator))
                corrections[0] @ v
            corrections[0]._corrected_eigenvalues.clear()
            return corrections[0].compute_eigenvalue_correction()

    found["Λ in given bases"] = corrected  # by a pass, as it keeps no records
    return found


def run(record: Record, device: str, effort: Effort, keep: Callable[[Row], None]) -> None:
    """All quantities of all networks."""
    makers: dict[str, Callable[[Network], dict[str, Call]]] = {"curvext": own_calls}
    if importlib.util.find_spec("curvlinops") is None:
        reason = "not installed: pip install curvlinops-for-pytorch"
        record.failed(reason, library="curvlinops", quantity="factors")
    else:
        makers["curvlinops"] = their_calls
    for name in effort.networks:
        network = build(name, device)
        calls: dict[tuple[str, str], Call] = {(GRADIENT, "torch"): gradient(network)}
        for library, make in makers.items():
            try:  # with a copy of the network each: a library that refuses may leave its hooks behind
                made = make(build(name, device))
            except Exception as failure:  # whatever a library raises is what is reported
                record.failed(failure, network=name, library=library, quantity="factors")
                continue
            calls |= working(record, name, library, made)
        rows = timed(calls, device, effort)
        record.rows += [{"network": name, **row} for row in rows]
        for row in record.rows[-len(rows) :]:
            keep(row)


def working(
    record: Record, network: str, library: str, calls: dict[str, Call]
) -> dict[tuple[str, str], Call]:
    """The calls that do not raise."""
    found = {}
    for quantity, call in calls.items():
        try:
            call()
        except Exception as failure:
            record.failed(failure, network=network, library=library, quantity=quantity)
        else:
            found[quantity, library] = call
    return found


def timed(calls: dict[tuple[str, str], Call], device: str, effort: Effort) -> Sequence[Row]:
    """A row for each call, in gradients of the same rounds."""
    names = {"|".join(key): key for key in calls}
    timings = interleaved(
        {name: calls[key] for name, key in names.items()},
        effort.rounds,
        device,
        effort.budget,
        again=True,
    )
    unit = timings[f"{GRADIENT}|torch"].median
    rows = []
    for name, timing in timings.items():
        quantity, library = names[name]
        row: Row = {"quantity": quantity, "library": library, "mode": "eager"}
        row |= {"milliseconds": 1e3 * timing.median, "gradients": timing.median / unit}
        row |= {"lower": timing.lower / unit, "upper": timing.upper / unit, "rounds": timing.rounds}
        rows.append(row)
    return rows
