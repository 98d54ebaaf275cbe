"""Squared per-sample gradients, summed: the diagonal of the empirical, Monte-Carlo and exact Fisher."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_windows
from ._registry import register_without_gradient


@register_without_gradient(
    "outer_square",
    reference.outer_square,
    instead="torch.einsum('vnso,nsi->vnoi', g, a).square().sum((0, 1))",
)
def _op(a: Tensor, g: Tensor) -> Tensor:
    check_outer_windows("outer_square", a, g)
    return a.new_empty(
        (g.shape[3], a.shape[3:].numel() if a.dim() == 5 else a.shape[2]),
        dtype=dtype_of_sums(a.dtype),
    )


def outer_square(a: Tensor, g: Tensor) -> Tensor:
    """Sums the elementwise squares of all per-sample gradients without storing one of them.

    out[o,i] = sum_v sum_n (sum_s g[v,n,s,o] a[n,s,i])^2

    Args:
        a: layer inputs [N,S,I], float64, float32, bfloat16 or float16, any strides; or windows of a strided
            tensor [N,S1,S2,I1,I2] with S = S1 S2 and I = I1 I2, as a convolution sees them, which on the CPU
            are not copied.
        g: output gradients [V,N,S,O], same dtype and device as ``a``; their scale enters squared.

    Returns:
        [O,I], unnormalised; float64 for float64 inputs, else float32. Zero where any of V, N, S is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        2 V N S O I flops (S = 1: 2 N O I + V N O), no memory beyond the result and 1 MB per thread on the CPU.

    Source:
        Dangel, Kunstner, Hennig, "BackPACK: Packing more into backprop", 2020, section 3 (second moment).

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_square
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # N = 2, S = 1, I = 2
        >>> g = torch.tensor([[[[1.0]], [[10.0]]]])  # V = 1, O = 1
        >>> outer_square(a, g)
        tensor([[ 901., 1604.]])
    """
    return _op(a, g)
