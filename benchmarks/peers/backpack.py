"""BackPACK: diagonals and norms as extensions of one backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import Ask, Call, Entry

LIBRARY = "BackPACK"
PACKAGE = "backpack-for-pytorch"


def extended(extension: str, attribute: str, finish: Callable) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        import backpack
        from backpack import extensions

        network = ask.network.classifier()
        composite = any(
            type(m).__module__.startswith("benchmarks") for m in network.model.modules()
        )
        model = backpack.extend(copy.deepcopy(network.model), use_converter=composite)
        loss = backpack.extend(copy.deepcopy(network.loss))
        parameters = list(model.parameters())

        def call() -> Tensor:
            for p in parameters:
                p.grad = None
            with backpack.backpack(getattr(extensions, extension)()):
                loss(model(network.batch[0]), network.batch[1]).backward()
            return finish([getattr(p, attribute) for p in parameters], network.samples)

        return call

    return make


def flat(blocks: list[Tensor], samples: int) -> Tensor:
    return torch.cat([b.reshape(-1) for b in blocks])


def squares(blocks: list[Tensor], samples: int) -> Tensor:
    # of the shares of a mean: N times that is the mean of N-fold shares
    return samples * flat(blocks, samples)


def norms(blocks: list[Tensor], samples: int) -> Tensor:
    return samples * torch.stack(blocks).sum(0).sqrt()


def entries() -> list[Entry]:
    return [
        Entry(
            "diag F_emp", LIBRARY, "eager", extended("SumGradSquared", "sum_grad_squared", squares)
        ),
        Entry("diag F_mc", LIBRARY, "eager", extended("DiagGGNMC", "diag_ggn_mc", flat), "none"),
        Entry("diag G", LIBRARY, "eager", extended("DiagGGNExact", "diag_ggn_exact", flat)),
        Entry("norms", LIBRARY, "eager", extended("BatchL2Grad", "batch_l2", norms)),
    ]
