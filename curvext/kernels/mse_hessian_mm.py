"""The squared error's output Hessian times vectors."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_elements, check_vectors
from ._registry import register_linear


@register_linear("mse_hessian_mm", reference.mse_hessian_mm, transpose="mse_hessian_mm")
def _op(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    check_elements("mse_hessian_mm", z, w)
    check_vectors("mse_hessian_mm", z, "u", u)
    return u.new_empty(u.shape)


def mse_hessian_mm(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Multiplies the output Hessian of the squared error, which is diagonal, onto K vectors.

    out[k] = 2 w u[k], for the loss w (f - y)^2

    Args:
        z: outputs of any shape, which is all they give, as the curvature is the same everywhere; float64, float32,
            bfloat16 or float16.
        u: vectors [K, *z.shape], same dtype and device.
        w: one weight per output, z.shape, in z's dtype or in float32; the loss's scale. It may be expanded. Where
            it is 0 the result is exactly 0, whatever z and u hold there.

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
        >>> from curvext.kernels import mse_hessian_mm
        >>> z = torch.zeros(2)
        >>> mse_hessian_mm(z, torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 0.5]))
        tensor([[2., 3.]])
    """
    return _op(z, u, w)
