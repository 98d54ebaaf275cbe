"""opacus: the norms that ghost clipping takes, without per-sample gradients where it has a rule."""

from __future__ import annotations

import copy

from torch import Tensor

from benchmarks.peers import Ask, Call, Entry

LIBRARY = "opacus"
PACKAGE = "opacus"


def norms(ask: Ask) -> Call:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    network = ask.network.classifier()
    # it hooks in training mode only; the networks here have no dropout
    model = GradSampleModuleFastGradientClipping(copy.deepcopy(network.model).train())
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> Tensor:
        for p in parameters:
            p.grad = None
        network.loss(model(network.batch[0]), network.batch[1]).backward()
        return model.get_norm_sample().detach()

    return call


def entries() -> list[Entry]:
    return [Entry("norms", LIBRARY, "eager", norms)]
