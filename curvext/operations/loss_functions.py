"""Loss functions of PyTorch, as a model may compute inside."""

from __future__ import annotations

import numpy as np

from curvext.operations.flow import At, Inputs, Outputs, constant, each, elementwise
from curvext.operations.operation import Operation


def _loss(at: At, out: Outputs) -> Inputs:
    """A loss of output and target, element by element where nothing is reduced."""
    if at.attribute("reduction") == 0:
        return elementwise(at, out)
    return each(at, lambda i: constant(at, i, out))


def _nll_loss(at: At, out: Outputs) -> Inputs:
    """ℓ [N, ...] of log-probabilities [N, C, ...], or [C] alone."""
    if at.attribute("reduction") != 0 or len(at.shape(0)) == 1 or out[0] is None:
        return [constant(at, 0, out)]
    return [np.expand_dims(out[0], 1)]


OPERATIONS = {
    **{
        f"{name}Backward0": Operation(flow=_loss)
        for name in (
            *("BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "HuberLoss", "MseLoss"),
            *("SmoothL1Loss", "SoftMarginLoss"),
        )
    },
    "NllLoss2DBackward0": Operation(flow=_nll_loss),
    "NllLossBackward0": Operation(flow=_nll_loss),
}
