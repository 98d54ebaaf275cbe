"""Reference of ``mse_sample``."""

import math

import torch
from torch import Tensor

from ._draw import following, positions, states, uniform


def mse_sample(z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0) -> Tensor:
    """√(2 w) ε by Box and Muller: an even position takes the cosine of its pair, the odd one after it the sine."""
    state, position = states(seed, draw, first, z), positions(z)
    pair = position - position % 2
    radius = (-2 * uniform(following(state, pair)).log()).sqrt()
    angle = 2 * math.pi * uniform(following(state, pair + 1))
    noise = radius * torch.where(position % 2 == 0, angle.cos(), angle.sin())
    wide = w.to(torch.promote_types(z.dtype, torch.float32))
    score = torch.where(w == 0, 0.0, (2 * wide).sqrt() * noise.to(wide.dtype))
    return score.to(z.dtype, memory_format=torch.contiguous_format)
