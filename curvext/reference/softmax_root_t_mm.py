"""Reference of ``softmax_root_t_mm``."""

import torch
from torch import Tensor


def softmax_root_t_mm(z: Tensor, u: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """√(w p) (u - <p,u>) with p = softmax(z) along ``dim``; positions with w = 0 give zeros."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, x, w = z.movedim(dim, -1).to(dtype), u.movedim(dim % z.dim() + 1, -1).to(dtype), w.to(dtype)
    p = torch.softmax(z, -1)
    # Differences to the u of the likeliest class: nothing cancels where its p is 1.
    top = z.argmax(-1, keepdim=True).expand(*x.shape[:-1], 1)
    d = x - x.gather(-1, top)
    product = (w[..., None] * p).sqrt() * (d - (p * d).sum(-1, keepdim=True))
    product = torch.where(w[..., None] == 0, 0.0, product)
    return product.movedim(-1, dim % z.dim() + 1).to(u.dtype, memory_format=torch.contiguous_format)
