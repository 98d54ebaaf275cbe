"""Functions of B + λI, block by block: which λ is which block's, and where there is no such function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curvext.arguments import as_number
from curvext.kronecker.blocks import Block

#: λ, or one for each block by its first parameter
Damping = float | Mapping[str, float]


def dampings_of(where: str, blocks: Sequence[Block], damping: Any) -> list[float]:
    """λ of each block."""

    def positive(name: str, value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise TypeError
            return as_number(name, value, "λ > 0, finite", lambda v: 0 < v < math.inf)
        except TypeError:
            raise ValueError(
                f"{name}: expected λ > 0, finite, or {{block: λ}}, got {value!r}"
            ) from None

    if not isinstance(damping, Mapping):
        return [positive(f"{where}: damping", damping)] * len(blocks)
    names = [block.params[0] for block in blocks]
    missing = [name for name in names if name not in damping]
    unknown = [name for name in damping if name not in names]
    if missing or unknown:
        raise ValueError(
            f"{where}: damping: expected one number for each of the {len(names)} blocks by the name of its first "
            f"parameter: missing {missing[:5]}, unknown {unknown[:5]}"
        )
    return [positive(f"{where}: damping[{name!r}]", damping[name]) for name in names]


def power_of(where: str, block: Block, damping: float, p: float) -> Block:
    def of(values: Tensor) -> Tensor:
        damped = values + damping
        if p == -1:
            _check_regular(where, block, damped)
            return damped.reciprocal()
        if not p.is_integer() or p < 0:
            check_positive(where, block, damped)
        return damped.pow(p)

    return block.function(block.spectral.map(of))


def _check_regular(where: str, block: Block, damped: Tensor) -> None:
    if float(damped.min()) > 0:
        return
    least, most = float(damped.abs().min()), float(damped.abs().max())
    if least <= torch.finfo(damped.dtype).eps * most:
        raise ValueError(
            f"{where}: damping: B + λI is singular to rounding in the block {block.params[0]!r} (eigenvalues of "
            f"magnitude {least:.1e} to {most:.1e}); raise damping"
        )


def check_positive(where: str, block: Block, damped: Tensor) -> None:
    least = float(damped.min())
    if least <= 0:
        raise ValueError(
            f"{where}: damping: B + λI is not positive definite: the block {block.params[0]!r} has the eigenvalue "
            f"{least:.3g}; raise damping"
        )
