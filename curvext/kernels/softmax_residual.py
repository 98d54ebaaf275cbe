"""The cross-entropy's derivative with respect to the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._checks import check_labels, check_softmax, check_target
from ._layout import like_softmax
from ._registry import register


def _reference(z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None, dim: int) -> Tensor:
    if target.dtype == torch.int64 and not target.is_cuda:  # reading the values would synchronise
        check_labels("softmax_residual", target, w, z.shape[dim])
    return reference.softmax_residual(z, target, w, spread, dim)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, _, w, _, ctx.dim = inputs
    ctx.save_for_backward(z, w)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:4]):
        raise RuntimeError(
            "softmax_residual: has a gradient with respect to z alone, but target, w or spread requires one. "
            "Detach them, or differentiate torch.nn.functional.cross_entropy twice instead."
        )
    z, w = ctx.saved_tensors
    product = torch.ops.curvext.softmax_hessian_mm(z, grad.unsqueeze(0), w, ctx.dim).squeeze(0)
    return product, None, None, None, None


@register("softmax_residual", _reference, backward=_backward, setup_context=_setup_context)
def _op(z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None, dim: int) -> Tensor:
    check_softmax("softmax_residual", z, w, dim)
    check_target("softmax_residual", z, target, w, spread, dim)
    mass = None if target.dtype == torch.int64 else target.unsqueeze(0)
    result = like_softmax(z, dim, mass)
    return result if mass is None else result.squeeze(0)


def softmax_residual(
    z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Differentiates the softmax cross-entropy with respect to the logits.

    out = w (p - q) = w p - t, p = softmax(z) along ``dim``, for the loss - Σ_c t_c log p_c of a target of mass t = w q

    Args:
        z: logits of any shape, classes along ``dim``; float64, float32, bfloat16 or float16. Logits of any finite size.
        target: class indices in int64, z.shape without ``dim``: then t = spread + (w - Σ spread) e_y. Or the mass t of
            each class in z's shape and dtype, with Σ_c t_c = w.
        w: the mass of each position's target, z.shape without ``dim``, in z's dtype or in float32. Where it is 0 the
            result is exactly 0, whatever z and target hold there; elsewhere an index must be one of a class.
        spread: beside indices, the mass [C] that every position gives to every class, in z's dtype or in float32:
            ε / C for label smoothing ε without class weights. None for none.
        dim: the class dimension of z; it may stand anywhere, nothing is copied for it.

    Returns:
        [*z.shape] in z's dtype. Where p is 1, 1 - p is a sum over the other classes: nothing cancels.
        A NaN reaches its own position only.

    Raises:
        ValueError: a shape, device, index or ``dim`` does not fit. On CUDA a wrong index gives NaN at its position.
        TypeError: a dtype does not fit.
        RuntimeError: on backward, when target, w or spread requires a gradient; z may, and its gradient is
            :func:`softmax_hessian_mm`.

    Cost:
        z and a given mass are read once where a row stays in cache, the result written once.

    Source:
        Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Example:
        >>> import torch
        >>> from curvext.kernels import softmax_residual
        >>> z = torch.zeros(1, 4)  # p = 1/4
        >>> softmax_residual(z, torch.tensor([2]), torch.ones(1))
        tensor([[ 0.2500,  0.2500, -0.7500,  0.2500]])
    """
    return _op(z, target, w, spread, dim)
