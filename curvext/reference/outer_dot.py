"""Reference of ``outer_dot``."""

import torch
from torch import Tensor


def outer_dot(a: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """<sum_s g[v,n,s,:] a[n,s,:]^T, W_k>; one per-sample gradient is in memory at a time."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    result = torch.zeros(*g.shape[:2], W.shape[0], dtype=dtype, device=a.device)
    for n in range(a.shape[0]):
        sample = torch.einsum("vso,si->voi", g[:, n].to(dtype), a[n].to(dtype))
        result[:, n] = torch.einsum("voi,koi->vk", sample, W.to(dtype))
    return result
