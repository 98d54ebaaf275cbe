"""Residuals of the squared error at targets drawn from the model."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ._checks import check_elements
from ._layout import wrapped
from ._registry import register_without_gradient


@register_without_gradient(
    "mse_sample",
    reference.mse_sample,
    instead="the expectation, mse_hessian_mm,",
)
def _op(z: Tensor, w: Tensor, seed: int, draw: int, first: int) -> Tensor:
    check_elements("mse_sample", z, w)
    return z.new_empty(z.shape)


def mse_sample(z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0) -> Tensor:
    """Draws a target for each output from the model and gives the residual there.

    out = 2 w (f - ŷ) = √(2 w) ε, ε ~ N(0, 1), for −log p(y|f) = w (f − y)² + const

    so that E[out outᵀ] is the output Hessian.

    Args:
        z: outputs of any shape; they give the shape alone; float64, float32, bfloat16 or float16.
        w: one weight per output, z.shape, in z's dtype or in float32, not negative; it may be expanded. Where it is 0
            the result is exactly 0.
        seed: of the draws, any integer.
        draw: number of the draw for each datum.
        first: index of the first datum; a datum is an index of the first dimension of z, and its positions are counted
            over the others. What is drawn depends on (seed, draw, datum, position) alone.

    Returns:
        [*z.shape] in z's dtype, contiguous.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: on backward.

    Cost:
        Writes once; two hashes, a logarithm, a root and a sine for each pair of outputs.

    Source:
        Box, Muller, "A note on the generation of random normal deviates", 1958.

    Example:
        >>> import torch
        >>> from curvext.kernels import mse_sample
        >>> z = torch.zeros(1000, 10, dtype=torch.float64)
        >>> score = mse_sample(z, torch.full_like(z, 0.5), seed=0)
        >>> abs(score.square().mean().item() - 1) < 0.05  # E = 2 w
        True
    """
    return _op(z, w, wrapped("mse_sample", seed), draw, first)
