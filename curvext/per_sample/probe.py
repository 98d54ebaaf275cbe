"""Asking the backward pass which samples an element of a gradient belongs to, for the batch at hand.

Backpropagation is linear, and exact under powers of two: scale the cotangent of sample n by s_n = ±2^k and every
element that belongs to sample n alone is scaled by s_n to the last bit. Two passes, plain and scaled, therefore show
how samples lie in a tensor, or that they are mixed there. The result holds for this batch and no other, because
indices, masks and parameters decide what flows. With a random cotangent it holds for every cotangent of the batch;
with a given one, whose pass is needed anyway, for that one. A gradient of zeros shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from curvext.samples.layout import Layout, layouts_of
from curvext.samples.owners import NOBODY, Owners, compressed

#: how many powers of two one pass distinguishes, with either sign: a float16 overflows soon
_POWERS = {torch.float16: 8, torch.float64: 512}
_POWERS_OTHERWISE = 96


class Probe:
    """Cotangents for the backward passes, and the verdict on the resulting gradients.

    Args:
        plain: ``[N, ...]`` like the output, that of the first pass; no two samples are scaled alike in all others.
    """

    def __init__(self, plain: Tensor) -> None:
        self.samples = len(plain)
        self._codes = 2 * _POWERS.get(plain.dtype, _POWERS_OTHERWISE)
        number = torch.arange(self.samples, device=plain.device)
        #: one for each pass, the first without scales, the others by the digits of the sample's number
        self.cotangents = [plain]
        reached = 1
        while reached < self.samples or len(self.cotangents) == 1:
            code = number // reached % self._codes
            scale = (2.0 ** (code // 2).double() * (1 - 2 * (code % 2))).to(plain.dtype)
            self.cotangents.append(plain * scale.view([-1] + [1] * (plain.ndim - 1)))
            reached *= self._codes

    def layouts(
        self, shape: Sequence[int], sketches: Sequence[Sketch]
    ) -> tuple[Layout, ...] | None:
        """The layouts that explain the gradients of all passes: empty if samples mix, None if inconclusive."""
        sizes = [float(sketch.largest) for sketch in sketches]
        if not any(sizes):
            return None
        if not all(0 < size < math.inf for size in sizes):  # it overflows, or vanishes
            return ()
        for number, reduced in enumerate(sketches[0].reduced_dims):
            owners = self._owners([sketch.sums[number] for sketch in sketches])
            if owners is not None:
                if reduced is not None:
                    owners = np.expand_dims(owners, reduced)
                return layouts_of(compressed(owners), shape, self.samples)
        return ()

    def _owners(self, sums: Sequence[Tensor]) -> Owners | None:
        """For each entry, the sample whose scales turn the first of some sums into the others."""
        plain, *scaled = sums
        nothing = plain == 0
        found = torch.zeros(plain.shape, dtype=torch.int64, device=plain.device)
        exact = torch.ones((), dtype=torch.bool, device=plain.device)
        reached = 1
        for after in scaled:
            half, exponent = torch.frexp(torch.where(nothing, 1, after / plain))
            # the quotient is rounded, so check that it turns the one into the other exactly
            turned = torch.ldexp(plain, exponent - 1) * half.sign()
            exact = exact & (after == turned.masked_fill(nothing, 0)).all()
            code = 2 * (exponent.long() - 1) + (half < 0)
            exact = exact & (code >= 0).all() & (code < self._codes).all()
            found += code * reached
            reached *= self._codes
        if not bool(exact & (found < self.samples).all()):
            return None
        return found.masked_fill(nothing, NOBODY).cpu().numpy()


def drawn_like(output: Tensor) -> Tensor:
    """A random cotangent, the same on every call."""
    # drawn on the output's device: for a language model the CPU would take seconds
    generator = torch.Generator(output.device).manual_seed(0x5EED)
    noise = torch.randn(
        output.shape, dtype=torch.float32, device=output.device, generator=generator
    )
    return noise.to(output.dtype)


class Sketch:
    """Weighted sums of a gradient along one dimension: enough to see its layout, a fraction of its memory."""

    def __init__(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        if (
            gradient.is_complex()
        ):  # an irregular sum of both parts: scales of powers of two stay exact
            gradient = gradient.real + 0.6180339887 * gradient.imag
        if gradient.ndim < 2:
            self.reduced_dims: tuple[int | None, ...] = (None,)
        elif gradient.ndim == 2:
            self.reduced_dims = (1, 0)
        else:
            self.reduced_dims = (gradient.ndim - 1,)
        self.sums = [
            gradient if d is None else _weighted_sum(gradient, d) for d in self.reduced_dims
        ]

    @property
    def largest(self) -> Tensor:
        """The largest entry; nan counts as one."""
        sums = self.sums[0]
        return sums.abs().amax() if sums.numel() else sums.new_zeros(())


def _weighted_sum(x: Tensor, dim: int) -> Tensor:
    # pseudorandom weights, because the gradient through a normalisation sums to zero
    number = torch.arange(x.shape[dim], device=x.device, dtype=torch.float64)
    weights = (1 + (number * 0.6180339887) % 1).to(x.dtype)
    return x @ weights if dim == x.ndim - 1 else weights @ x
