"""Reference of ``softmax_sample``."""

import torch
from torch import Tensor

from ._draw import following, positions, states, uniform
from .softmax_residual import softmax_residual


def softmax_sample(
    z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0, dim: int = -1
) -> Tensor:
    """√w (p - e_y), y = argmax e^z / E with E = -log(1 - U) exponential, U hashed from its counters."""
    classes = torch.arange(z.shape[dim], device=z.device)
    state = following(states(seed, draw, first, w), positions(w))
    clock = -torch.log1p(-uniform(following(state[..., None], classes)))
    logits = z.movedim(dim, -1).double()
    if logits.numel() == 0:
        return z.clone(memory_format=torch.contiguous_format)
    rate = torch.exp(logits - logits.amax(-1, keepdim=True))
    label = (rate / clock).argmax(-1)
    root = w.to(torch.promote_types(z.dtype, torch.float32)).sqrt()
    return softmax_residual(z, label, root, None, dim)
