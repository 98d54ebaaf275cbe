"""Reference of ``outer_sum``."""

import torch
from torch import Tensor


def outer_sum(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """sum_vn c[k,v,n] sum_s g[v,n,s,:] a[n,s,:]^T; one per-sample gradient is in memory at a time."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    result = torch.zeros(c.shape[0], g.shape[3], a.shape[2], dtype=dtype, device=a.device)
    for n in range(a.shape[0]):
        sample = torch.einsum("vso,si->voi", g[:, n].to(dtype), a[n].to(dtype))
        result += torch.einsum("kv,voi->koi", c[:, :, n].to(dtype), sample)
    return result
