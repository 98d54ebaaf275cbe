"""Random numbers that depend on where they are used, not on when: csrc/draw.h in wrapping int64 arithmetic."""

import torch
from torch import Tensor

# The increment and the finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def states(seed: int, draw: int, first: int, like: Tensor) -> Tensor:
    """A state for each datum, an index of the first dimension of ``like``: [n, 1, ...]."""
    count = like.shape[0] if like.dim() else 1
    datum = torch.arange(first, first + count, device=like.device)
    state = _mixed(torch.full((count,), seed, device=like.device) + _GOLDEN)
    for counter in (torch.full_like(state, draw), datum):
        state = following(state, counter)
    return state.view([count] + [1] * (like.dim() - 1)) if like.dim() else state.view(())


def positions(like: Tensor) -> Tensor:
    """The number of each position within its datum, in the shape [1, ...] that broadcasts to ``like``."""
    inner = like.shape[1:]
    return torch.arange(inner.numel(), device=like.device).view([1, *inner] if like.dim() else [])


def following(state: Tensor, counter: Tensor) -> Tensor:
    """The state after one more counter."""
    return _mixed(state ^ (counter * _GOLDEN))


def uniform(bits: Tensor) -> Tensor:
    """The number in (0, 1), float64, that a state stands for; exact."""
    return (_shifted(bits, 12).double() + 0.5) * 2.0**-52


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_FIRST
    x = (x ^ _shifted(x, 27)) * _MIX_SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
