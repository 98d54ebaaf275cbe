"""The binary cross-entropy's output Hessian times vectors."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_elements, check_vectors
from ._registry import register_linear


@register_linear("sigmoid_hessian_mm", reference.sigmoid_hessian_mm, transpose="sigmoid_hessian_mm")
def _op(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    check_elements("sigmoid_hessian_mm", z, w)
    check_vectors("sigmoid_hessian_mm", z, "u", u)
    return u.new_empty(u.shape)


def sigmoid_hessian_mm(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Multiplies the output Hessian of the binary cross-entropy with logits, which is diagonal, onto K vectors.

    out[k] = w p (1 - p) u[k], p = 1 / (1 + e^-z)

    Args:
        z: logits of any shape; float64, float32, bfloat16 or float16.
        u: vectors [K, *z.shape], same dtype and device.
        w: one weight per output, z.shape, in z's dtype or in float32; the loss's scale, weight and positive
            weight. It may be expanded. Where it is 0 the result is exactly 0, whatever z and u hold there.

    Returns:
        [K, *z.shape] in the dtype of u, contiguous.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward, when z or w requires a gradient; u may.

    Cost:
        z and w are read once for all K vectors, u once, the result written once.

    Source:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002, table 1.

    Example:
        >>> import torch
        >>> from curvext.kernels import sigmoid_hessian_mm
        >>> z = torch.zeros(2)  # p = 1/2
        >>> sigmoid_hessian_mm(z, torch.tensor([[1.0, 4.0]]), torch.ones(2))
        tensor([[0.2500, 1.0000]])
    """
    return _op(z, u, w)
