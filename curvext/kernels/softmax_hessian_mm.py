"""The cross-entropy's output Hessian times vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._checks import check_softmax
from ._registry import register


def _check(z: Tensor, u: Tensor, w: Tensor, dim: int) -> None:
    check_softmax("softmax_hessian_mm", z, u, w, dim)


def _fake(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    _check(z, u, w, dim)
    # As the kernels lay it out: rows where the classes are neighbours in memory, otherwise as the shape says.
    dim %= z.dim()
    if dim != z.dim() - 1 and z.stride(dim) == 1 and z.shape[dim] > 1 and u.stride(dim + 1) == 1:
        rows = u.movedim(dim + 1, -1)
        return torch.empty(rows.shape, dtype=u.dtype, device=u.device).movedim(-1, dim + 1)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, _, w, ctx.dim = inputs
    ctx.save_for_backward(z, w)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
        raise RuntimeError(
            "softmax_hessian_mm: has a gradient with respect to u alone, but z or w requires one. Detach them: "
            "the product is linear in u at fixed logits."
        )
    z, w = ctx.saved_tensors
    # H_l is symmetric, so the transposed product is the product.
    return None, _op(z, grad, w, ctx.dim), None, None


_op = register(
    "softmax_hessian_mm(Tensor z, Tensor u, Tensor w, int dim) -> Tensor",
    check=_check,
    reference=reference.softmax_hessian_mm,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def softmax_hessian_mm(z: Tensor, u: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """Multiplies the softmax cross-entropy's output Hessian onto K vectors.

    out[k] = w p (u[k] - <p, u[k]>), p = softmax(z) along ``dim``

    Args:
        z: logits of any shape, classes along ``dim``; float64, float32, bfloat16 or float16. Logits of any finite size.
        u: vectors [K, *z.shape], same dtype and device.
        w: one weight per position, z.shape without ``dim``, in z's dtype or in float32; the loss's scale and class
            weight. Where it is 0 the result is exactly 0, whatever z and u hold there.
        dim: the class dimension of z; it may stand anywhere, nothing is copied for it.

    Returns:
        [K, *z.shape] in the dtype of u. Probabilities below the smallest normal number count as 0.
        A NaN reaches its own position only.

    Raises:
        ValueError: a shape, device or ``dim`` does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward, when z or w requires a gradient; u may.

    Cost:
        z is read once for all K vectors where a row stays in cache, u once, the result written once.

    Source:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002, table 1.

    Example:
        >>> import torch
        >>> from curvext.kernels import softmax_hessian_mm
        >>> z = torch.zeros(1, 2)  # p = (1/2, 1/2)
        >>> u = torch.tensor([[[1.0, 3.0]]])  # K = 1, <p,u> = 2
        >>> softmax_hessian_mm(z, u, torch.ones(1))
        tensor([[[-0.5000,  0.5000]]])
    """
    return _op(z, u, w, dim)
