"""The pairs of a convolution, whose inputs are the patches that its window sees."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.dtypes import wide
from curvext.gradients.convolution import ConvolutionGradient
from curvext.kronecker import shifts
from curvext.kronecker.moments import second_moment
from curvext.kronecker.pairs import CHUNK, PatchPairs

#: by how many dimensions an image has
_SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvolutionPairs(PatchPairs):
    """The pairs of a convolution: the patches of its padded input, the channel before the place in the window.

    They are unfolded with the channel last, so that a row of a patch is a run of neighbours in memory, and what is
    made of them is put in order at the end. A transposed convolution is one over its input with zeros between the
    pixels, the window turned round.
    """

    def __init__(self, use: ConvolutionGradient, bias: bool) -> None:
        gradient = use.gradient
        split = gradient.flatten(3).unflatten(2, (use.groups, -1))  # [N, R, G, O, S]
        super().__init__(split.permute(2, 0, 1, 4, 3).flatten(2, 3), bias)
        self._split = split
        self._use = use
        self._positions = gradient.shape[3:]
        self._window = use.shape[2:]
        self._channels = use.input.shape[2] // use.groups

    def _width(self) -> int:
        return self._channels * prod(self._window)

    def output_moment(self, dense: bool, summed: bool) -> Tensor:
        g = wide(self._split)
        if summed:  # over images and positions, as they lie
            return second_moment(g.sum((1, 4)).transpose(0, 1), None, dense)
        return super().output_moment(dense, summed)

    def _moment(self, positions: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
        use = self._use
        if dense and not use.transposed:
            geometry = shifts.Geometry(
                tuple(use.input.shape[3:]),
                tuple(self._window),
                use.stride,
                use.padding,
                use.dilation,
            )
            if geometry.pays(self._channels):
                parts = [self._by_shifts(geometry, k, positions[k]) for k in range(use.groups)]
                found = [part for part in parts if part is not None]
                if len(found) == use.groups:
                    return torch.stack([m for m, _ in found]), torch.stack([s for _, s in found])
        matrix, sums = super()._moment(positions, dense)
        order = self._in_order(sums)
        sums = sums[:, order]
        return (matrix[:, order][:, :, order] if dense else matrix[:, order]), sums

    def _by_shifts(
        self, geometry: shifts.Geometry, group: int, positions: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        x = self._use.input.flatten(0, 1).unflatten(1, (self._use.groups, -1))[:, group]
        where = positions.view(-1, *self._positions)
        return shifts.patch_moment(wide(x), where, geometry)

    def _means(self, positions: Tensor) -> Tensor:
        use = self._use
        if use.transposed:
            means = super()._means(positions)
            return means[:, :, self._in_order(means)]
        samples, images = use.input.shape[:2]
        spread = images * use.groups * prod(self._window) * prod(use.input.shape[3:])
        step = max(1, CHUNK // max(1, spread))
        parts = []
        for start in range(0, samples, step):
            x = wide(use.input[start : start + step])
            x = x.flatten(3).unflatten(2, (use.groups, -1))  # [n, R, G, I, pixels]
            w = positions[:, start : start + step].to(x.dtype)
            sums = x @ self._spread_positions(w, images).mT  # [n, R, G, I, places]
            means = sums.sum(1).flatten(2) / w.sum(2).mT.clamp(min=1).unsqueeze(2)
            parts.append(means.transpose(0, 1))
        return torch.cat(parts, 1)

    def _spread_positions(self, w: Tensor, images: int) -> Tensor:
        """For each place in the window the positions that see each pixel there: ``[n, R, G, places, pixels]``."""
        use, places, pixels = self._use, prod(self._window), self._use.input.shape[3:]
        rank = len(pixels)
        unit = torch.eye(places, dtype=w.dtype, device=w.device).view(1, places, *self._window)
        rests = [
            size - ((positions - 1) * stride - 2 * pad + dilation * (k - 1) + 1)
            for size, positions, stride, pad, dilation, k in zip(
                pixels,
                self._positions,
                use.stride,
                use.padding,
                use.dilation,
                self._window,
                strict=True,
            )
        ]
        each = w.view(
            -1, 1, *self._positions
        )  # a transposed convolution with units copies, and adds nothing up
        spread = _SPREAD[rank](each, unit, None, use.stride, use.padding, rests, 1, use.dilation)
        split = spread.view(w.shape[0], -1, images, places, prod(pixels))
        return split.permute(1, 2, 0, 3, 4)

    def square(self, out: Tensor | None, inner: Tensor | None) -> Tensor:
        if inner is None:
            total = super().square(out, None)
            return total[:, :, self._in_order(total)]
        return super().square(out, inner[:, self._from_order(inner)])

    def sides(self, dense_out: bool, dense_in: bool) -> tuple[Tensor, Tensor]:
        left, right = super().sides(dense_out, dense_in)
        order = self._in_order(right)
        return left, right[:, order][:, :, order] if dense_in else right[:, order]

    def _in_order(self, like: Tensor) -> Tensor:
        """Where each entry (channel, place), and a bias's if ``like`` has one, stands among those of a patch."""
        order = (
            torch.arange(self._width(), device=like.device).view(-1, self._channels).mT.flatten()
        )
        return self._with_bias(order, like)

    def _from_order(self, like: Tensor) -> Tensor:
        """The inverse of :meth:`_in_order`."""
        order = (
            torch.arange(self._width(), device=like.device).view(self._channels, -1).mT.flatten()
        )
        return self._with_bias(order, like)

    def _with_bias(self, order: Tensor, like: Tensor) -> Tensor:
        return order if like.shape[-1] == len(order) else F.pad(order, (0, 1), value=len(order))

    def _patches(self, start: int, stop: int) -> Tensor:
        split = self._split_windows(start, stop)
        return split.reshape(len(split), stop - start, -1, self._width())

    def _extended(self, start: int, stop: int) -> Tensor:
        split = self._split_windows(start, stop)
        wide = split.new_ones(
            len(split), stop - start, self.g.shape[2], self._width() + 1
        )  # filled in place of a copy of what was unfolded
        inside = wide[..., :-1].unflatten(3, split.shape[-len(self._window) - 1 :])
        images = (self._use.input.shape[1], *self._positions)
        inside.unflatten(2, images).copy_(split.unflatten(1, (stop - start, -1)))
        return wide

    def _split_windows(self, start: int, stop: int) -> Tensor:
        """The patches of some samples as a view, ``[G, n R, *positions, *window, I/G]``."""
        use = self._use
        x = use.input[start:stop].flatten(0, 1)
        if use.transposed:
            windows = self._windows(self._spread(x), (1,) * len(self._window))
            windows = windows.flip([-d - 2 for d in range(len(self._window))])
        else:
            pads = [p for size in reversed(use.padding) for p in (size, size)]
            windows = self._windows(F.pad(x, pads) if any(pads) else x, use.stride)
        return windows.unflatten(-1, (use.groups, -1)).movedim(-2, 0)

    def _spread(self, x: Tensor) -> Tensor:
        """The input of a transposed convolution with zeros between its pixels and about them."""
        use, rank = self._use, len(self._window)
        sizes = [(s - 1) * t + 1 for s, t in zip(x.shape[2:], use.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        where = (slice(None), slice(None), *(slice(None, None, t) for t in use.stride))
        spread[where] = x
        pads: list[int] = []
        for d in reversed(range(rank)):
            before = use.dilation[d] * (self._window[d] - 1) - use.padding[d]
            after = self._positions[d] + use.dilation[d] * (self._window[d] - 1) - before - sizes[d]
            pads += [before, after]
        return F.pad(spread, pads)

    def _windows(self, x: Tensor, stride: tuple[int, ...]) -> Tensor:
        """[B, *positions, *window, I] as a view of a padded input, turned so that its channels come last."""
        x = x.movedim(1, -1).contiguous()
        spatial = x.stride()[1:-1]
        return x.as_strided(
            (len(x), *self._positions, *self._window, x.shape[-1]),
            (
                x.stride(0),
                *(s * t for s, t in zip(spatial, stride, strict=True)),
                *(s * d for s, d in zip(spatial, self._use.dilation, strict=True)),
                1,
            ),
        )
