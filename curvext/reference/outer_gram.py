"""Reference of ``outer_gram``."""

import torch
from torch import Tensor


def outer_gram(a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
    """<sum_s g[n,s,:] a[n,s,:]^T, sum_t g2[m,t,:] a2[m,t,:]^T>; the gradients of a pair are in memory at a time."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, g, a2, g2 = (x.to(dtype) for x in (a, g, a2, g2))
    result = torch.zeros(a.shape[0], a2.shape[0], dtype=dtype, device=a.device)
    for n in range(a.shape[0]):
        sample = g[n].mT @ a[n]
        for m in range(a2.shape[0]):
            result[n, m] = (sample * (g2[m].mT @ a2[m])).sum()
    return result
