"""Losses in output space: residual, output Hessian and divisor of each batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from curvext.losses.base import LossPoint, OutputLoss, computes
from curvext.losses.bce import BinaryCrossEntropy
from curvext.losses.causal_lm import CausalLMLoss
from curvext.losses.cross_entropy import SoftmaxCrossEntropy
from curvext.losses.custom import CustomLoss
from curvext.losses.dependence import check_independent
from curvext.losses.mse import SquaredError
from curvext.losses.nll import NegativeLogLikelihood

__all__ = ["CausalLMLoss", "LossPoint", "OutputLoss", "output_loss"]


# The functional forms, called as loss(output, target), are these modules.
_MODULE_OF = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.nll_loss: nn.NLLLoss,
    F.l1_loss: nn.L1Loss,
}


def output_loss(
    loss: Any, reduction: str | None, parameters: Mapping[str, Tensor] | None = None
) -> OutputLoss:
    """The output-space form of ``loss``: closed where there is one, by autograd otherwise.

    A subclass of a torch loss has its closed form unless it computes something of its own.

    Args:
        loss: a loss module, or any callable ``loss(output, target) -> scalar``.
        reduction: of a callable that does not say.
        parameters: those to be differentiated, by name; the loss may read them through the output alone.

    Raises:
        TypeError: ``loss`` is not callable.
        ValueError: its reduction is unknown, or ``reduction`` contradicts it; or its weights depend on ``parameters``.
    """
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss: expected a loss module or a callable, got {loss!r}")
    with suppress(TypeError):  # an unhashable callable is none of them
        loss = _MODULE_OF[loss]() if loss in _MODULE_OF else loss
    own = getattr(loss, "reduction", None)
    if reduction is not None and own is not None and reduction != own:
        raise ValueError(f"reduction: {reduction!r} contradicts loss.reduction = {own!r}")
    parameters = {} if parameters is None else parameters
    for name in ("weight", "pos_weight"):
        weight = getattr(loss, name, None)
        if isinstance(weight, Tensor):
            check_independent(weight, parameters, f"loss: its {name} is, or is made of,")
    if computes(loss, nn.CrossEntropyLoss) or computes(loss, CausalLMLoss):
        return SoftmaxCrossEntropy.from_module(loss)
    if computes(loss, nn.MSELoss):
        return SquaredError.from_module(loss)
    if computes(loss, nn.BCEWithLogitsLoss):
        return BinaryCrossEntropy.from_module(loss)
    if computes(loss, nn.NLLLoss):
        return NegativeLogLikelihood.from_module(loss)
    return CustomLoss(loss, reduction, parameters)
