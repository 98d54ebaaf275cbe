"""Which elements of a tensor belong to which sample: proven from the backward pass, not guessed.

A layer deep in a network sees tensors whose batch dimension may be the second ([T, N, D]), merged
with another ([N·T, D], Swin's windows) or gone. Backpropagation is linear, and exact under powers of
two: scale the cotangent of sample n by s_n = 2^k and every element that belongs to sample n alone is
scaled by s_n to the last bit. Two backward passes therefore tell, for every tensor in the graph, along
which dimension the samples lie, or that they are mixed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The samples lie along dimension ``dim``, whose index is (n, rest) if ``major`` else (rest, n)."""

    dim: int
    major: bool

    def fits(self, shape: Sequence[int], samples: int) -> bool:
        """Whether a tensor of this shape can be so laid out."""
        return self.dim < len(shape) and shape[self.dim] % samples == 0

    def same_for(self, other: Layout, shape: Sequence[int], samples: int) -> bool:
        """Whether both mean the same at this shape."""
        if self.dim != other.dim:
            return False
        return self.major == other.major or shape[self.dim] == samples or samples == 1

    def of_index(self, size: int, samples: int, device: torch.device) -> Tensor:
        """The sample of each index along the dimension, int64 [size]."""
        index = torch.arange(size, device=device)
        return index // (size // samples) if self.major else index % samples

    def samples_first(self, x: Tensor, samples: int) -> Tensor:
        """``x`` as ``[N, ...]``: the sample dimension split off and moved to the front.

        The rest of the split dimension stays in place with size ``shape[dim] / N``.
        """
        if x.ndim == 0:  # a scalar, so of the only sample
            return x.unsqueeze(0)
        sizes = list(x.shape)
        rest = sizes[self.dim] // samples
        sizes[self.dim : self.dim + 1] = (samples, rest) if self.major else (rest, samples)
        split = x.view(sizes)  # always can be: one dimension becomes two
        first = self.dim if self.major else self.dim + 1
        return split.movedim(first, 0) if first else split


class Probe:
    """Cotangents for the two backward passes, and the verdict on what came of them."""

    def __init__(self, output: Tensor) -> None:
        self.samples = int(output.shape[0])
        # made where the output lies: that of a language model takes seconds on the CPU
        where: dict[str, Any] = {
            "generator": torch.Generator(output.device).manual_seed(0x5EED),
            "device": output.device,
        }
        levels = 8 if output.dtype is torch.float16 else 16
        exponents = torch.randperm(max(self.samples, levels), **where)[: self.samples] % levels
        self.scale = (2.0**exponents).to(output.dtype)
        noise = torch.randn(output.shape, dtype=torch.float32, **where)
        self.plain = noise.to(output.dtype)
        self.scaled = self.plain * self.scale.view([-1] + [1] * (output.ndim - 1))

    def layouts(self, shape: Sequence[int], plain: _Sketch, scaled: _Sketch) -> set[Layout]:
        """All layouts that explain the two gradients; empty if samples are mixed."""
        found = set()
        for dim in range(len(shape)):
            for major in (True, False):
                layout = Layout(dim, major)
                if layout.fits(shape, self.samples) and self._explains(
                    layout, shape, plain, scaled
                ):
                    found.add(layout)
        return found

    def _explains(
        self, layout: Layout, shape: Sequence[int], plain: _Sketch, scaled: _Sketch
    ) -> bool:
        index = layout.of_index(shape[layout.dim], self.samples, self.scale.device)
        factor = self.scale[index]
        for reduced, before, after in zip(plain.reduced_dims, plain.sums, scaled.sums, strict=True):
            if reduced == layout.dim:
                continue
            dim = layout.dim - (reduced is not None and reduced < layout.dim)
            along = factor.view([-1 if d == dim else 1 for d in range(before.ndim)])
            return bool(torch.equal(after, before * along.to(before.dtype)))
        return False


class _Sketch:
    """Weighted sums of a gradient along one dimension: enough to see its layout, a fraction of its memory."""

    def __init__(self, gradient: Tensor) -> None:
        if gradient.ndim < 2:
            self.reduced_dims: tuple[int | None, ...] = (None,)
        elif gradient.ndim == 2:
            self.reduced_dims = (1, 0)
        else:
            self.reduced_dims = (gradient.ndim - 1,)
        self.sums = [
            gradient if d is None else _weighted_sum(gradient, d) for d in self.reduced_dims
        ]


def _weighted_sum(x: Tensor, dim: int) -> Tensor:
    # irregular weights: the gradient through a normalisation has sum zero
    weights = (
        1 + (torch.arange(x.shape[dim], device=x.device, dtype=torch.float64) * 0.6180339887) % 1
    )
    weights = weights.to(x.dtype)
    return x @ weights if dim == x.ndim - 1 else weights @ x


def sketch(gradient: Tensor) -> _Sketch:
    """What :class:`Probe` needs of a gradient."""
    return _Sketch(gradient.detach())
