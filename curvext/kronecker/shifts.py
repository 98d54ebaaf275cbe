"""Σ a aᵀ over the patches a of a convolution by its distinct shifts, without unfolding them.

Were every position a window's that meets the image, the entry of the places p and q in the window would be

    Σ_s x[s + p] x[s + q]ᵀ = Σ_u x[u] x[u + q − p]ᵀ,

which depends on q − p alone: for a window of k^r places (2k − 1)^r shifts, half of them the transposes of the others,
in place of k^2r products. What the positions beyond the convolution's own, at the borders, and those that do not count
add to it is unfolded and subtracted; where that is most of it, there is no answer, as rounding would be.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.kronecker.moments import second_moment
from curvext.kronecker.spectral import symmetric

#: with fewer channels products of shifts are too small to be worth it
_CHANNELS = 16
#: the work of patches beside that of shifts from which on these pay: theirs are smaller products
_GAIN = 1.5
#: how much larger than the result what it is subtracted from may be, by their traces
_LOSS = 4
#: the share of positions that may not count: each of them is unfolded
_MISSING = 0.25
#: elements of padded images at a time
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Geometry:
    """How a window goes over an image.

    Attributes:
        image, window: sizes.
        stride, padding, dilation: of the convolution.
    """

    image: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def gaps(self) -> list[int]:
        """How far beyond a pixel a window reaches."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.window, strict=True)]

    @property
    def borders(self) -> list[int]:
        """How many positions on each side of the convolution's own meet the image."""
        return [max(0, gap - pad) for gap, pad in zip(self.gaps, self.padding, strict=True)]

    @property
    def shifts(self) -> list[tuple[int, ...]]:
        """The differences of places that are not the negative of another, the first of which is zero."""
        every = product(*(range(1 - k, k) for k in self.window))
        return [shift for shift in every if shift >= (0,) * len(self.window)]

    def pays(self, channels: int) -> bool:
        """Whether there is an answer, and it takes less work than that by patches."""
        if any(t != 1 for t in self.stride) or channels < _CHANNELS:
            return False
        if any(border > size for border, size in zip(self.borders, self.image, strict=True)):
            return False
        room = prod(size + gap for size, gap in zip(self.image, self.gaps, strict=True))
        positions = prod(
            size + 2 * pad - gap
            for size, pad, gap in zip(self.image, self.padding, self.gaps, strict=True)
        )
        return _GAIN * len(self.shifts) * room < prod(self.window) ** 2 * positions / 2


def patch_moment(x: Tensor, where: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor] | None:
    """Σ a aᵀ and Σ a over the patches at some positions, the channel before the place in the window.

    Args:
        x: ``[B, I, *image]``, at least float32.
        where: which positions count, ``[B, *positions]``.
        geometry: with strides of one, and borders that are no wider than the image.

    Returns:
        ``[D, D]``, symmetric to the last bit, and ``[D]``; None where more would be subtracted than is left, so that
        rounding would be that of a larger matrix.
    """
    missing = (~where).nonzero(as_tuple=True)
    if len(missing[0]) > _MISSING * where.numel():
        return None
    channels, window = x.shape[1], geometry.window
    matrix = _with_borders(x, geometry)
    whole = float(matrix.diagonal().sum())
    parts = matrix.view(channels, *window, channels, *window)
    rank = len(window)
    for patches, places in _beyond(x, geometry):
        at = (slice(None), *places) * 2
        here = parts[at]
        here -= second_moment(patches.flatten(1).unsqueeze(0), None, True)[0].view(here.shape)
    sums = _windows(_padded(x.sum(0, keepdim=True), geometry.padding), window, geometry.dilation)
    sums = sums.sum(tuple(range(1, 1 + rank)))[0].flatten()
    if len(missing[0]):
        seen = _windows(_padded(x, geometry.padding), window, geometry.dilation)
        patches = seen[missing].flatten(1)
        matrix -= second_moment(patches.unsqueeze(0), None, True)[0]
        sums = sums - patches.sum(0)
    return (matrix, sums) if _LOSS * float(matrix.diagonal().sum()) >= whole else None


def _with_borders(x: Tensor, geometry: Geometry) -> Tensor:
    """Σ a aᵀ over all positions whose window meets the image, ``[D, D]``."""
    channels, shifts = x.shape[1], geometry.shifts
    room = [size + gap for size, gap in zip(geometry.image, geometry.gaps, strict=True)]
    strides = [prod(room[d + 1 :]) for d in range(len(room))]
    steps = [d * s for d, s in zip(geometry.dilation, strides, strict=True)]
    sums = x.new_zeros(len(shifts), channels, channels)
    step = max(1, _CHUNK // (channels * prod(room)))
    inside = (slice(None), slice(None), *(slice(size) for size in geometry.image))
    for start in range(0, len(x), step):
        images = x[start : start + step]
        # as many zeros after each row of pixels as a window reaches: a shift never comes to pixels of another row
        flat = x.new_zeros(channels, len(images), *room)
        flat[inside] = images.transpose(0, 1)
        flat = flat.view(channels, -1)
        for total, shift in zip(sums, shifts, strict=True):
            offset = sum(s * t for s, t in zip(shift, steps, strict=True))
            total.addmm_(flat[:, : flat.shape[1] - offset], flat[:, offset:].T)
    sums[0] = symmetric(sums[0])
    number = {shift: n for n, shift in enumerate(shifts)}
    places = list(product(*map(range, geometry.window)))
    both = torch.cat([sums, sums.mT])
    which = []
    for p, q in product(places, places):
        shift = tuple(b - a for a, b in zip(p, q, strict=True))
        back = tuple(-s for s in shift)
        which.append(number[shift] if shift in number else len(shifts) + number[back])
    blocks = both[torch.tensor(which, device=x.device)]
    count = len(places)
    square = blocks.view(count, count, channels, channels).permute(2, 0, 3, 1)
    return square.reshape(channels * count, channels * count)


def _beyond(x: Tensor, geometry: Geometry) -> list[tuple[Tensor, tuple[slice, ...]]]:
    """The patches at positions beyond the convolution's own, ``[M, I, *places]``, with the places that meet the image.

    Those before and behind it along each dimension; along the dimensions before that the convolution's own alone, so
    that each comes once.
    """
    found = []
    rank = len(geometry.window)
    for d, border in enumerate(geometry.borders):
        if border == 0:
            continue
        size, k, dilation = geometry.image[d], geometry.window[d], geometry.dilation[d]
        first, last = geometry.padding[d] // dilation + 1, (border - 1) // dilation
        sides = (
            (0, (geometry.gaps[d] - first * dilation, 0), slice(first, k)),
            (size - border, (0, last * dilation), slice(0, last + 1)),
        )
        for start, pads, some in sides:
            around = [
                pads if e == d else (geometry.padding[e],) * 2 if e < d else (geometry.gaps[e],) * 2
                for e in range(rank)
            ]
            places = tuple(some if e == d else slice(0, geometry.window[e]) for e in range(rank))
            piece = x.narrow(2 + d, start, border)
            piece = F.pad(piece, [p for pair in reversed(around) for p in pair])
            window = tuple(s.stop - s.start for s in places)
            patches = _windows(piece, window, geometry.dilation)
            found.append((patches.flatten(0, rank), places))
    return found


def _padded(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    return F.pad(x, [p for size in reversed(padding) for p in (size, size)])


def _windows(x: Tensor, window: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """``[B, *positions, I, *window]`` as a view of padded images."""
    x = x.contiguous()
    spatial = x.stride()[2:]
    positions = [
        size - d * (k - 1) for size, d, k in zip(x.shape[2:], dilation, window, strict=True)
    ]
    return x.as_strided(
        (len(x), *positions, x.shape[1], *window),
        (
            x.stride(0),
            *spatial,
            x.stride(1),
            *(s * d for s, d in zip(spatial, dilation, strict=True)),
        ),
    )
