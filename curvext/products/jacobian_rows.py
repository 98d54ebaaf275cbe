"""J by its rows, one backward pass for each output: where no other way to J v exists and outputs are few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: outputs of a batch, and elements of J, up to which its rows are made and kept
_OUTPUTS, _ELEMENTS = 4096, 1 << 26


class JacobianRows:
    """J = ∂f/∂θ of one batch, materialised.

    Args:
        output: f with its graph, ``[N, ...]``.
        parameters: the leaves θ.
    """

    def __init__(self, output: Tensor, parameters: Sequence[Tensor]) -> None:
        count = output.numel()
        self._shape = output.shape
        self._rows = [p.new_zeros(count, p.numel()) for p in parameters]
        for i in range(count):
            unit = torch.zeros_like(output).reshape(-1)
            unit[i] = 1
            gradients = torch.autograd.grad(
                output, parameters, unit.view_as(output), retain_graph=True, allow_unused=True
            )
            for rows, gradient in zip(self._rows, gradients, strict=True):
                if gradient is not None:
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    rows[i] = dense.reshape(-1)

    @staticmethod
    def fit(output: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Whether there are few enough."""
        count = output.numel()
        return count <= _OUTPUTS and count * sum(p.numel() for p in parameters) <= _ELEMENTS

    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        """J v in the shape of the output."""
        parts = [rows @ block.reshape(-1) for rows, block in zip(self._rows, v, strict=True)]
        return torch.stack(parts).sum(0).view(self._shape)

    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(rows.numel() * rows.element_size() for rows in self._rows)
