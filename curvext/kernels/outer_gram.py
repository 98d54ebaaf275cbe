"""Inner products between per-sample gradients: spectrum and damped solve of the empirical Fisher."""

from __future__ import annotations

from torch import Tensor

from curvext.dtypes import dtype_of_sums

from .. import reference
from ._checks import check_outer_gram
from ._registry import register_without_gradient


@register_without_gradient(
    "outer_gram",
    reference.outer_gram,
    instead="(g.mT @ a).flatten(1) @ (g2.mT @ a2).flatten(1).T",
)
def _op(a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
    check_outer_gram("outer_gram", a, g, a2, g2)
    return a.new_empty((a.shape[0], a2.shape[0]), dtype=dtype_of_sums(a.dtype))


def outer_gram(a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
    """Forms the inner product of every two per-sample gradients without storing the gradients.

    out[n,m] = sum_oi (sum_s g[n,s,o] a[n,s,i]) (sum_t g2[m,t,o] a2[m,t,i])

    Args:
        a: layer inputs [N,S,I], float64, float32, bfloat16 or float16, any strides.
        g: output gradients [N,S,O], one for each datum; same dtype and device as ``a``.
        a2: layer inputs [N',S',I] of the same layer, likewise.
        g2: output gradients [N',S',O], likewise.

    Returns:
        [N,N'], unnormalised; float64 for float64 inputs, else float32. Zero where S, S', I or O is 0.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward; the result is not differentiable.

    Cost:
        The cheaper of 2 N S N' S' (I + O) flops, by inner products of positions, and 2 (N S + N' S' + N N') O I, by
        the gradients themselves; a workspace of at most 64 MB.

    Source:
        Dangel, Tatzel, Hennig, "ViViT: Curvature access through the generalized Gauss-Newton's low-rank structure",
        2022, section 3.

    Example:
        >>> import torch
        >>> from curvext.kernels import outer_gram
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # N = 2, S = 1, I = 2
        >>> g = torch.tensor([[[1.0]], [[10.0]]])  # O = 1
        >>> outer_gram(a, g, a, g)
        tensor([[   5.,  110.],
                [ 110., 2500.]])
    """
    return _op(a, g, a2, g2)
