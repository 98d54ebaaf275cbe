"""Inner products of per-sample gradients with K matrices: the first half of a Fisher product."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_dot
from ._registry import register_without_gradient


@register_without_gradient(
    "outer_dot",
    reference.outer_dot,
    instead="torch.einsum('vnso,nsi,koi->vnk', g, a, W)",
)
def _op(a: Tensor, g: Tensor, W: Tensor) -> Tensor:
    check_outer_dot("outer_dot", a, g, W)
    return a.new_empty((*g.shape[:2], W.shape[0]), dtype=dtype_of_sums(a.dtype))


def outer_dot(a: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """Multiplies every per-sample gradient onto K matrices without storing one of them.

    out[v,n,k] = sum_s sum_oi g[v,n,s,o] W[k,o,i] a[n,s,i]

    Args:
        a: layer inputs [N,S,I], float64, float32, bfloat16 or float16, any strides.
        g: output gradients [V,N,S,O], same dtype and device as ``a``.
        W: matrices [K,O,I], in the dtype of ``a`` or of the result.

    Returns:
        [V,N,K], unnormalised; float64 for float64 inputs, else float32. Zero where S, I or O is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        2 K N S O (I + V) flops, or 2 V N (S + K) O I where K S is more than V (S + K); a workspace of at most 64 MB.

    Source:
        The first half of F v, F = sum_vn G_vn G_vn^T: Schraudolph, "Fast curvature matrix-vector products for
        second-order gradient descent", 2002.

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_dot
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # N = 2, S = 1, I = 2
        >>> g = torch.tensor([[[[1.0]], [[10.0]]]])  # V = 1, O = 1
        >>> outer_dot(a, g, torch.tensor([[[1.0, -1.0]]]))  # K = 1
        tensor([[[ -1.],
                 [-10.]]])
    """
    return _op(a, g, W)
