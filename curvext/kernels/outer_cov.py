"""Weighted second moments of rows: Kronecker factors and dense blocks."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_cov
from ._registry import register_without_gradient


@register_without_gradient("outer_cov", reference.outer_cov, instead="x.T @ (w.unsqueeze(1) * x)")
def _op(x: Tensor, w: Tensor) -> Tensor:
    check_outer_cov("outer_cov", x, w)
    return x.new_empty((x.shape[1], x.shape[1]), dtype=dtype_of_sums(x.dtype))


def outer_cov(x: Tensor, w: Tensor) -> Tensor:
    """Sums the weighted outer products of rows with themselves, by one triangle of the symmetric result.

    out[i,j] = sum_m w[m] x[m,i] x[m,j]

    Args:
        x: rows [M,D], float64, float32, bfloat16 or float16, any strides.
        w: a weight of any sign for each row [M], of x's dtype or that of sums.

    Returns:
        [D,D], unnormalised, symmetric to the last bit; float64 for float64 inputs, else float32. Zero where M is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        M D (D + t) flops with tiles of t = 128 columns (512 on CUDA), half of a plain product's; a workspace of 4 MB of
        weighted rows (32 MB), or 512 rows.

    Source:
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015, section 3.

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_cov
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # M = 2, D = 2
        >>> outer_cov(x, torch.tensor([1.0, 10.0]))
        tensor([[ 91., 122.],
                [122., 164.]])
    """
    return _op(x, w)
