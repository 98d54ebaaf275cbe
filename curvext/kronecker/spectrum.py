"""The leading eigenpairs of a block-diagonal matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvext.kronecker.block_matrix import BlockMatrix
from curvext.kronecker.blocks import Block
from curvext.kronecker.spectral import Spectral
from curvext.results import EigenResult


def leading_pairs(operator: BlockMatrix, blocks: Sequence[Block], k: int) -> EigenResult:
    """The ``k`` leading eigenpairs of ``operator``, whose blocks these are."""
    spectra = [block.spectral for block in blocks]
    if k > sum(spectral.values.numel() for spectral in spectra):
        spectra = [spectral.completed() for spectral in spectra]
    values = torch.cat([spectral.values.flatten() for spectral in spectra])
    leading = values.topk(k).indices.flip(0)  # ascending
    vectors = torch.zeros(k, operator.size, dtype=values.dtype, device=operator.device)
    start = 0
    for block, spectral in zip(blocks, spectra, strict=True):
        inside = (leading >= start) & (leading < start + spectral.values.numel())
        which = leading[inside] - start
        start += spectral.values.numel()
        if len(which):
            rows = torch.zeros(
                len(which), operator.size, dtype=values.dtype, device=operator.device
            )
            block.place.write(rows, _eigenvectors(block, spectral, which))
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


def _eigenvectors(block: Block, spectral: Spectral, which: Tensor) -> Tensor:
    """Eigenvectors ``[m, n]`` by their numbers among the values of the block's ``spectral``."""
    units = torch.zeros(len(which), spectral.values.numel(), dtype=block.sums, device=which.device)
    units[torch.arange(len(which), device=which.device), which] = 1
    return block.form.vectors(spectral.back(units.view(-1, *spectral.values.shape)))
