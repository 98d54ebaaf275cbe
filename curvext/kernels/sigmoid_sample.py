"""Residuals of the binary cross-entropy with logits at targets drawn from the model."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_elements
from ._layout import wrapped
from ._registry import register_without_gradient


@register_without_gradient(
    "sigmoid_sample",
    reference.sigmoid_sample,
    instead="the expectation, sigmoid_hessian_mm,",
)
def _op(z: Tensor, w: Tensor, seed: int, draw: int, first: int) -> Tensor:
    check_elements("sigmoid_sample", z, w)
    return z.new_empty(z.shape)


def sigmoid_sample(z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0) -> Tensor:
    """Draws a target for each output from the model and gives the residual there.

    out = √w (p - b), b = 1 with probability p = 1 / (1 + e^-z)

    so that E[out outᵀ] is the output Hessian.

    Args:
        z: logits of any shape; float64, float32, bfloat16 or float16.
        w: one weight per output, z.shape, in z's dtype or in float32, not negative; it may be expanded. Where it is 0
            the result is exactly 0.
        seed: of the draws, any integer.
        draw: number of the draw for each datum.
        first: index of the first datum; a datum is an index of the first dimension of z, and its positions are counted
            over the others. What is drawn depends on (seed, draw, datum, position) alone.

    Returns:
        [*z.shape] in z's dtype, contiguous. b is decided in
        float64, so it is the same for every dtype of z that holds the same values.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward.

    Cost:
        Reads z and w once, writes once; an exponential and a hash for each logit.

    Source:
        Martens, "New insights and perspectives on the natural gradient method", 2020, section 5.

    Example:
        >>> import torch
        >>> from curvext.kernels import sigmoid_sample
        >>> z = torch.zeros(1, 4, dtype=torch.float64)  # p = 1/2
        >>> sigmoid_sample(z, torch.ones_like(z), seed=0).abs()
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    return _op(z, w, wrapped("sigmoid_sample", seed), draw, first)
