"""Weighted sums of per-sample gradients: the second half of a Fisher product."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_sum
from ._registry import register_without_gradient


@register_without_gradient(
    "outer_sum",
    reference.outer_sum,
    instead="torch.einsum('kvn,vnso,nsi->koi', c, g, a)",
)
def _op(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    check_outer_sum("outer_sum", a, g, c)
    return a.new_empty((c.shape[0], g.shape[3], a.shape[2]), dtype=dtype_of_sums(a.dtype))


def outer_sum(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """Sums all per-sample gradients under K sets of weights without storing one of them.

    out[k,o,i] = sum_v sum_n c[k,v,n] sum_s g[v,n,s,o] a[n,s,i]

    Args:
        a: layer inputs [N,S,I], float64, float32, bfloat16 or float16, any strides.
        g: output gradients [V,N,S,O], same dtype and device as ``a``.
        c: weights [K,V,N], in the dtype of ``a`` or of the result.

    Returns:
        [K,O,I], unnormalised; float64 for float64 inputs, else float32. Zero where V, N or S is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        K N S O (2 I + V) flops, or 2 V N (S + K) O I where K S is more than V (S + K); a workspace of at most 64 MB.

    Source:
        The second half of F v, F = sum_vn G_vn G_vn^T: Schraudolph, "Fast curvature matrix-vector products for
        second-order gradient descent", 2002.

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_sum
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # N = 2, S = 1, I = 2
        >>> g = torch.tensor([[[[1.0]], [[10.0]]]])  # V = 1, O = 1
        >>> outer_sum(a, g, torch.tensor([[[1.0, 0.5]]]))  # K = 1
        tensor([[[16., 22.]]])
    """
    return _op(a, g, c)
