"""Random numbers that depend on where they are used, not on when: counter-based draws for Monte-Carlo labels."""

from __future__ import annotations

import torch
from torch import Tensor

# The finaliser of SplitMix64 (Steele, Lea & Flood 2014), in wrapping int64 arithmetic.
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(
    seed: int, draw: int, first: int, samples: int, positions: int, device: torch.device
) -> Tensor:
    """Numbers in (0, 1), float64 [samples, positions]; entry (n, m) depends on (seed, draw, first + n, m)."""
    datum = torch.arange(first, first + samples, device=device).unsqueeze(1)
    position = torch.arange(positions, device=device).unsqueeze(0)
    state = _mix(torch.full((1, 1), _wrapped(seed), device=device) + _GOLDEN)
    for counter in (torch.full_like(state, draw), datum, position):
        state = _mix(state ^ (counter * _GOLDEN))
    return (_shifted(state, 11).double() + 0.5) * 2.0**-53


def normal(
    seed: int, draw: int, first: int, samples: int, positions: int, device: torch.device
) -> Tensor:
    """Standard normal numbers, float64 [samples, positions], likewise."""
    return torch.special.ndtri(uniform(seed, draw, first, samples, positions, device))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
