"""The cross-entropy's output Hessian times vectors."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_softmax, check_vectors
from ._layout import like_softmax
from ._registry import register_linear


@register_linear("softmax_hessian_mm", reference.softmax_hessian_mm, transpose="softmax_hessian_mm")
def _op(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    check_softmax("softmax_hessian_mm", z, w, dim)
    check_vectors("softmax_hessian_mm", z, "u", u)
    return like_softmax(z, dim, u)


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
