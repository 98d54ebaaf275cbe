"""Reference of ``outer_cov``."""

import torch
from torch import Tensor


def outer_cov(x: Tensor, w: Tensor) -> Tensor:
    """Sum over m of w_m x_m x_m^T."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.to(dtype)
    product = torch.einsum("mi,m,mj->ij", x, w.to(dtype), x)
    return product.triu() + product.triu(1).T
