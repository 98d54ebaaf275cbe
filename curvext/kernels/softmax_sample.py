"""Residuals of the cross-entropy at labels drawn from the model."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_softmax
from ._layout import like_softmax, wrapped
from ._registry import register_without_gradient


@register_without_gradient(
    "softmax_sample",
    reference.softmax_sample,
    instead="the expectation, softmax_hessian_mm,",
)
def _op(z: Tensor, w: Tensor, seed: int, draw: int, first: int, dim: int) -> Tensor:
    check_softmax("softmax_sample", z, w, dim)
    return like_softmax(z, dim)


def softmax_sample(
    z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0, dim: int = -1
) -> Tensor:
    """Draws a label for each position from the model and gives the cross-entropy's residual there.

    out = √w (p - e_ŷ), ŷ ~ p = softmax(z) along ``dim``, by Gumbel's maximum

    so that E[out outᵀ] = w (diag p - p pᵀ), the output Hessian.

    Args:
        z: logits of any shape, classes along ``dim``; float64, float32, bfloat16 or float16. Logits of any finite size.
        w: one weight per position, z.shape without ``dim``, in z's dtype or in float32, not negative; it enters as its
            root. Where it is 0 the result is exactly 0, whatever z holds there.
        seed: of the draws, any integer.
        draw: number of the draw for each datum.
        first: index of the first datum; a datum is an index of the first dimension of w, and its positions are counted
            over the others. What is drawn depends on (seed, draw, datum, position) alone.
        dim: the class dimension of z; it may stand anywhere, nothing is copied for it.

    Returns:
        [*z.shape] in z's dtype. The race is decided in float64, so labels are the same on every device, for every
        layout, and for every dtype of z that holds the same values. Probabilities below the smallest normal number
        count as 0. A NaN reaches its own position only.

    Raises:
        ValueError: a shape, device or ``dim`` does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward.

    Cost:
        z is read once where a row stays in cache, the result written once; one or two exponentials and a hash per
        logit, and logarithms for the few classes that can win.

    Source:
        Gumbel's maximum: Maddison, Tarlow, Minka, "A* sampling", 2014, section 2.

    Example:
        >>> import torch
        >>> from curvext.kernels import softmax_sample
        >>> z = torch.tensor([[0.0, 0.0], [50.0, 0.0]], dtype=torch.float64)
        >>> softmax_sample(z, torch.ones(2, dtype=torch.float64), seed=0).abs()[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return _op(z, w, wrapped("softmax_sample", seed), draw, first, dim)
