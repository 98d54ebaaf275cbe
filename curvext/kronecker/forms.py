"""How a block's vector lies as matrices ``[G, O, I]``: what Γ and A act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from curvext.operations.view_chain import ViewChain


@dataclass(frozen=True)
class Form:
    """The way between a block's vectors and matrices, one for each group of a convolution.

    Attributes:
        sizes: the weight as it lies in memory: the groups, then its other dimensions.
        order: where each dimension of ``[G, O, *I]`` stands in ``sizes``.
        bias: how many of the columns are a bias, the last: 0 or 1.
        bias_first: whether the bias stands before the weight in the vector.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    bias: int = 0
    bias_first: bool = False

    @classmethod
    def vector(cls, size: int) -> Form:
        """Of a block that is no matrix: ``[1, n, 1]``."""
        return cls((1, size, 1), (0, 1, 2))

    @property
    def groups(self) -> int:
        """G."""
        return self.sizes[0]

    @property
    def fan_out(self) -> int:
        """O of one group."""
        return self.sizes[self.order[1]]

    @property
    def fan_in(self) -> int:
        """I of one group, the bias among them."""
        return prod(self.sizes[d] for d in self.order[2:]) + self.bias

    @property
    def size(self) -> int:
        """The length of a vector."""
        return self.groups * self.fan_out * self.fan_in

    def matrices(self, x: Tensor) -> Tensor:
        """Vectors ``[K, n]`` as ``[K, G, O, I]``."""
        outputs = self.groups * self.fan_out * self.bias
        weights = x.shape[1] - outputs
        parts = (outputs, weights) if self.bias_first else (weights, outputs)
        first, second = x.split(parts, 1)
        weight, bias = (second, first) if self.bias_first else (first, second)
        turned = weight.reshape(-1, *self.sizes).permute(0, *(d + 1 for d in self.order))
        matrix = turned.reshape(len(x), self.groups, self.fan_out, -1)
        if not self.bias:
            return matrix
        return torch.cat([matrix, bias.reshape(len(x), self.groups, self.fan_out, 1)], 3)

    def vectors(self, matrices: Tensor) -> Tensor:
        """The inverse of :meth:`matrices`."""
        count = len(matrices)
        width = self.fan_in - self.bias
        turned = matrices[..., :width].reshape(count, *(self.sizes[d] for d in self.order))
        back = [0] * len(self.order)
        for place, d in enumerate(self.order):
            back[d] = place + 1
        weight = turned.permute(0, *back).reshape(count, -1)
        if not self.bias:
            return weight
        bias = matrices[..., width].reshape(count, -1)
        return torch.cat([bias, weight] if self.bias_first else [weight, bias], 1)


def form_of_matrix(
    arrange: ViewChain, shape: torch.Size, fan_out: int, fan_in: int, transposed: bool
) -> Form | None:
    """The form of a parameter of which a use sees the whole, as a matrix or its transpose; else None."""
    seen = arrange(torch.empty(shape, device="meta"))
    if seen.numel() != shape.numel() or seen.numel() != fan_out * fan_in:
        return None
    matrix = seen
    while matrix.ndim > 2 and matrix.shape[0] == 1:  # einsum puts such a dimension before it
        matrix = matrix[0]
    if matrix.ndim != 2:
        return None
    matrix = matrix.mT if transposed else matrix
    if matrix.shape != (fan_out, fan_in):
        return None
    if _strides(matrix) == _strides(torch.empty(fan_out, fan_in, device="meta")):
        return Form((1, fan_out, fan_in), (0, 1, 2))
    if _strides(matrix) == _strides(torch.empty(fan_in, fan_out, device="meta").mT):
        return Form((1, fan_in, fan_out), (0, 2, 1))
    return None


def form_of_convolution(
    arrange: ViewChain, shape: torch.Size, groups: int, transposed: bool
) -> Form | None:
    """The form of a convolution's weight, which is used as it lies; else None."""
    if not is_whole(arrange, shape):
        return None
    window = prod(shape[2:])
    if not transposed:
        return Form((groups, shape[0] // groups, shape[1] * window), (0, 1, 2))
    return Form((groups, shape[0] // groups, shape[1], window), (0, 2, 1, 3))


def is_whole(arrange: ViewChain, shape: torch.Size) -> bool:
    """Whether a use sees all elements of the parameter, in their order."""
    seen = arrange(torch.empty(shape, device="meta"))
    return seen.numel() == shape.numel() and seen.is_contiguous()


def _strides(matrix: Tensor) -> Sequence[int]:
    """Strides, without those of dimensions of size one, which say nothing."""
    return [s for size, s in zip(matrix.shape, matrix.stride(), strict=True) if size != 1]
