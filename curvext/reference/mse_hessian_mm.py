"""Reference of ``mse_hessian_mm``."""

import torch
from torch import Tensor


def mse_hessian_mm(z: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """2 w u; zero where w is 0."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    product = torch.where(w == 0, 0.0, 2 * w.to(dtype) * u.to(dtype))
    return product.to(u.dtype, memory_format=torch.contiguous_format)
