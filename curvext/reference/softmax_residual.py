"""Reference of ``softmax_residual``."""

import torch
from torch import Tensor


def softmax_residual(
    z: Tensor, target: Tensor, w: Tensor, spread: Tensor | None = None, dim: int = -1
) -> Tensor:
    """w p - t with p = softmax(z) along ``dim``; t a mass, or spread + (w - Σ spread) e_y for indices y."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    back, logits, w = dim % z.dim(), z.movedim(dim, -1).to(dtype), w.to(dtype)[..., None]
    if target.dtype == torch.int64:
        even = logits.new_zeros(z.shape[dim]) if spread is None else spread.to(dtype)
        mass = even.expand(logits.shape).clone()
        label = torch.where(w == 0, 0, target[..., None])
        mass.scatter_add_(-1, label, w - even.sum()) if mass.numel() else mass
    else:
        mass = target.movedim(dim, -1).to(dtype)
    if logits.shape[-1] == 0:
        return z.clone(memory_format=torch.contiguous_format)
    top = logits.argmax(-1, keepdim=True)
    e = torch.exp(logits - logits.gather(-1, top))
    rest = e.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    # 1 - p of the likeliest class as a sum over the others
    at_top = (w - mass.gather(-1, top)) - w * (rest / (1 + rest))
    residual = (w * (e / (1 + rest)) - mass).scatter(-1, top, at_top)
    residual = torch.where(w == 0, 0.0, residual)
    return residual.movedim(-1, back).to(z.dtype, memory_format=torch.contiguous_format)
