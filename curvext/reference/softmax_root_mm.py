"""Reference of ``softmax_root_mm``."""

import torch
from torch import Tensor


def softmax_root_mm(z: Tensor, v: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """√w (√p v - p <√p,v>) with p = softmax(z) along ``dim``; positions with w = 0 give zeros."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    z, x, w = z.movedim(dim, -1).to(dtype), v.movedim(dim % z.dim() + 1, -1).to(dtype), w.to(dtype)
    if z.shape[-1] == 0:
        return v.clone(memory_format=torch.contiguous_format)
    top = z.argmax(-1, keepdim=True)
    e = torch.exp(z - z.gather(-1, top))
    rest = e.scatter(-1, top, 0.0)  # without the likeliest class t, so that 1 - p_t = Σ rest / Σ e
    total = 1 + rest.sum(-1, keepdim=True)
    q = rest.sqrt()
    at = top.expand(*x.shape[:-1], 1)
    dot = (q * x).sum(-1, keepdim=True)
    product = e.sqrt() * (x - e.sqrt() * (x.gather(-1, at) + dot) / total)
    at_top = (x.gather(-1, at) * (total - 1) - dot) / total
    product = (w[..., None] / total).sqrt() * product.scatter(-1, at, at_top)
    product = torch.where(w[..., None] == 0, 0.0, product)
    return product.movedim(-1, dim % z.dim() + 1).to(v.dtype, memory_format=torch.contiguous_format)
