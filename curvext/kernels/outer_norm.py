"""Squared norms of per-sample gradients: gradient norms and the trace of the Fisher."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_windows
from ._registry import register_without_gradient


@register_without_gradient(
    "outer_norm",
    reference.outer_norm,
    instead="torch.einsum('vnso,nsi->vnoi', g, a).square().sum((2, 3))",
)
def _op(a: Tensor, g: Tensor) -> Tensor:
    check_outer_windows("outer_norm", a, g)
    return a.new_empty(g.shape[:2], dtype=dtype_of_sums(a.dtype))


def outer_norm(a: Tensor, g: Tensor) -> Tensor:
    """Squares the norm of every per-sample gradient without storing them.

    out[v,n] = sum_oi (sum_s g[v,n,s,o] a[n,s,i])^2

    Args:
        a: layer inputs [N,S,I], float64, float32, bfloat16 or float16, any strides; or windows of a strided
            tensor [N,S1,S2,I1,I2] with S = S1 S2 and I = I1 I2, as a convolution sees them, which on the CPU
            are not copied.
        g: output gradients [V,N,S,O], same dtype and device as ``a``; their scale enters squared.

    Returns:
        [V,N], squared and unnormalised; float64 for float64 inputs, else float32. Zero where S, I or O is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        S = 1: one pass over a and g. Else the cheaper of 2 S^2 N (I + V O) flops, by the S x S inner products, and
        2 V N S O I, by the gradients themselves; a workspace of at most 64 MB holds either for some of the samples.

    Source:
        Goodfellow, "Efficient per-example gradient computations", 2015 (S = 1); Rochette, Manoel, Tramel,
        "Efficient per-example gradient computations in convolutional networks", 2019 (S > 1).

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_norm
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # N = 2, S = 1, I = 2
        >>> g = torch.tensor([[[[1.0]], [[10.0]]]])  # V = 1, O = 1
        >>> outer_norm(a, g)
        tensor([[   5., 2500.]])
    """
    return _op(a, g)
