"""Reference of ``sigmoid_hessian_mm``."""

import torch
from torch import Tensor


def sigmoid_hessian_mm(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """w p (1 - p) u with p = 1 / (1 + e^-z); zero where w is 0."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, w = z.to(dtype), w.to(dtype)
    curvature = w * (torch.sigmoid(z) * torch.sigmoid(-z))
    product = torch.where(w == 0, 0.0, curvature * u.to(dtype))
    return product.to(u.dtype, memory_format=torch.contiguous_format)
