"""The transposed root of the cross-entropy's output Hessian times vectors."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_softmax, check_vectors
from ._layout import like_softmax
from ._registry import register_linear


@register_linear("softmax_root_t_mm", reference.softmax_root_t_mm, transpose="softmax_root_mm")
def _op(z: Tensor, u: Tensor, w: Tensor, dim: int) -> Tensor:
    check_softmax("softmax_root_t_mm", z, w, dim)
    check_vectors("softmax_root_t_mm", z, "u", u)
    return like_softmax(z, dim, u)


def softmax_root_t_mm(z: Tensor, u: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """Multiplies Sᵀ onto K vectors, where S Sᵀ is the softmax cross-entropy's output Hessian.

    out[k] = Sᵀ u[k] = √(w p) (u[k] - <p, u[k]>), p = softmax(z) along ``dim``

    Its squares sum to uᵀ H u.

    Args:
        z: logits of any shape, classes along ``dim``; float64, float32, bfloat16 or float16. Logits of any finite size.
        u: vectors [K, *z.shape], same dtype and device.
        w: one weight per position, z.shape without ``dim``, in z's dtype or in float32, not negative; it enters as
            its root. Where it is 0 the result is exactly 0, whatever z and u hold there.
        dim: the class dimension of z; it may stand anywhere, nothing is copied for it.

    Returns:
        [K, *z.shape] in the dtype of u. Probabilities below the smallest normal number count as 0.
        A NaN reaches its own position only.

    Raises:
        ValueError: a shape, device or ``dim`` does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward, when z or w requires a gradient; u may.

    Cost:
        That of :func:`softmax_hessian_mm`, and a square root for each logit.

    Source:
        Dangel, Kunstner, Hennig, "BackPACK: packing more into backprop", 2020, appendix A.

    Example:
        >>> import torch
        >>> from curvext.kernels import softmax_root_t_mm
        >>> z = torch.zeros(1, 2)  # p = (1/2, 1/2)
        >>> u = torch.tensor([[[1.0, 3.0]]])  # K = 1, <p,u> = 2
        >>> softmax_root_t_mm(z, u, torch.ones(1))
        tensor([[[-0.7071,  0.7071]]])
    """
    return _op(z, u, w, dim)
