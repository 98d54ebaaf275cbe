"""Reference of ``outer_norm``."""

import torch
from torch import Tensor


def outer_norm(a: Tensor, g: Tensor) -> Tensor:
    """sum_oi (sum_s g[v,n,s,o] a[n,s,i])^2; one per-sample gradient is in memory at a time."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    a = a.flatten(3).flatten(1, 2) if a.dim() == 5 else a
    result = torch.zeros(g.shape[:2], dtype=dtype, device=a.device)
    for n in range(a.shape[0]):
        sample = torch.einsum("vso,si->voi", g[:, n].to(dtype), a[n].to(dtype))
        result[:, n] = sample.square().sum((1, 2))
    return result
