"""The leading eigenpairs of a block-diagonal matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.kronecker.block_matrix import BlockMatrix
from curvext.kronecker.blocks import Block
from curvext.results import EigenResult


def leading_pairs(operator: BlockMatrix, blocks: Sequence[Block], k: int) -> EigenResult:
    """The ``k`` leading eigenpairs of ``operator``, whose blocks these are."""
    values = torch.cat([block.spectral.values.flatten() for block in blocks])
    leading = values.topk(k).indices.flip(0)  # ascending
    vectors = torch.zeros(k, operator.size, dtype=values.dtype, device=operator.device)
    start = 0
    for block in blocks:
        inside = (leading >= start) & (leading < start + block.size)
        which = leading[inside] - start
        start += block.size
        if len(which):
            rows = torch.zeros(
                len(which), operator.size, dtype=values.dtype, device=operator.device
            )
            block.place.write(rows, _eigenvectors(block, which))
            vectors[inside] = rows
    residuals = (operator.mapped(vectors, blocks) - vectors * values[leading].unsqueeze(1)).norm(
        dim=1
    )
    tolerance = 100 * torch.finfo(values.dtype).eps ** 0.5 * float(values[leading[-1]].abs())
    return EigenResult(
        values[leading].to(operator.dtype),
        vectors.T.to(operator.dtype),
        residuals.to(operator.dtype),
        bool((residuals <= tolerance).all()),
        products=k,
    )


def _eigenvectors(block: Block, which: Tensor) -> Tensor:
    """Eigenvectors ``[m, n]`` by their numbers among the block's eigenvalues."""
    spectral, form = block.spectral, block.form
    units = torch.zeros(len(which), block.size, dtype=block.sums, device=which.device)
    units[torch.arange(len(which), device=which.device), which] = 1
    rotated = units.view(-1, form.groups, form.fan_out, form.fan_in)
    return form.vectors(spectral.back(rotated))
