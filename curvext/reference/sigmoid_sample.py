"""Reference of ``sigmoid_sample``."""

import torch
from torch import Tensor

from ._draw import following, positions, states, uniform


def sigmoid_sample(z: Tensor, w: Tensor, seed: int, draw: int = 0, first: int = 0) -> Tensor:
    """√w (p - b), b = 1 with probability p = 1 / (1 + e^-z), hashed from its counters."""
    drawn = uniform(following(states(seed, draw, first, z), positions(z)))
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    miss = torch.where(
        drawn < torch.sigmoid(z.double()), -torch.sigmoid(-wide), torch.sigmoid(wide)
    )
    score = torch.where(w == 0, 0.0, w.to(wide.dtype).sqrt() * miss)
    return score.to(z.dtype, memory_format=torch.contiguous_format)
