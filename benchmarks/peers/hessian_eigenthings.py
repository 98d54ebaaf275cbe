"""hessian-eigenthings: products of H, G and F_emp one vector at a time, in its exact modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import Ask, Call, Entry

LIBRARY = "hessian-eigenthings"
PACKAGE = "hessian-eigenthings"
#: it forms the gradients of a whole batch, [N,P]: equal batches of this many samples, which it averages
BATCH = 32


def operator(letter: str, ask: Ask) -> Any:
    import hessian_eigenthings as he
    from hessian_eigenthings.loss_fns import standard

    network = ask.network.classifier()
    model, criterion, batch = network.model, network.loss, network.batch
    if letter == "H":
        return he.HessianOperator(model, [batch], standard.supervised_loss(criterion))
    if letter == "G":
        return he.GGNOperator(
            model,
            [batch],
            standard.supervised_forward,
            standard.supervised_loss_of_output(criterion),
        )
    parts = list(zip(*(t.split(min(BATCH, len(t))) for t in batch), strict=True))
    one = nn.CrossEntropyLoss()

    def sample_loss(m: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        return one(m(sample[0].unsqueeze(0)), sample[1].unsqueeze(0))

    return he.EmpiricalFisherOperator(model, parts, sample_loss)


def product(letter: str) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        multiply = lanczos_operator(letter, ask)
        return lambda: multiply(ask.v)

    return make


def entries() -> list[Entry]:
    return [Entry(f"{k} v", LIBRARY, "eager", product(k)) for k in ("H", "G", "F_emp")]


def lanczos_operator(letter: str, ask: Ask) -> Callable[[Tensor], Tensor]:
    linear = operator(letter, ask)

    def multiply(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return linear.matvec(v).detach()

    return multiply
