"""A convolution's use of its weight, by windows of its padded input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from curvext.dtypes import alike, wide
from curvext.gradients.structured import OneTensorGradient
from curvext.kernels.outer_norm import outer_norm
from curvext.kernels.outer_square import outer_square

#: workspace for unfolded or materialised chunks: about a CPU's cache, and enough to fill a GPU
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}


class ConvolutionGradient(OneTensorGradient):
    """A convolution's weight, ``[O, I/groups, *kernel]``, unfolded a few samples at a time.

    For a transposed convolution the two tensors change places: its weight ``[I, O/groups, *kernel]``
    is that of the convolution which maps its output to its input.

    Args:
        inner: ``[N, R, I, *spatial]``, what the window slides over; R images per sample.
        outer: ``[N, R, O, *positions]``.
        shape: D.
        stride, padding, dilation, groups: of the convolution.
        transposed: whether it is a transposed one, so that ``inner`` is the gradient and ``outer`` the input.
    """

    def __init__(
        self,
        inner: Tensor,
        outer: Tensor,
        shape: torch.Size,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        transposed: bool = False,
    ) -> None:
        self._inner = inner
        self._outer = outer
        self._shape = shape
        self._stride = stride
        self._padding = padding
        self._dilation = dilation
        self._groups = groups
        self.transposed = transposed

    @property
    def input(self) -> Tensor:
        """The layer's input, ``[N, R, I, *spatial]``."""
        return self._outer if self.transposed else self._inner

    @property
    def gradient(self) -> Tensor:
        """g at the layer's output, ``[N, R, O, *positions]``."""
        return self._inner if self.transposed else self._outer

    @property
    def shape(self) -> torch.Size:
        """D."""
        return self._shape

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps of the window."""
        return self._stride

    @property
    def padding(self) -> tuple[int, ...]:
        """Zeros on each side."""
        return self._padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Steps within the window."""
        return self._dilation

    @property
    def groups(self) -> int:
        """G."""
        return self._groups

    @property
    def pulled_back(self) -> Tensor | None:
        return None if self.transposed else self._outer

    def square(self) -> Tensor:
        return self._square(self._chunks(self._outer.unsqueeze(0)))

    def square_of(self, several: Tensor) -> Tensor:
        return self._square(self._chunks(several))

    def _square(self, chunks: Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
        total = None
        for a, g in chunks:
            part = torch.stack([outer_square(ag, gg) for ag, gg in zip(a, g, strict=True)])
            total = part if total is None else total.add_(part)
        assert total is not None
        return self._natural(total)

    def sample(self, n: int) -> Tensor:
        a, g = self._unfold(n, n + 1, self._padded(1), self._outer.unsqueeze(0))
        return self._natural(wide(g[:, 0, 0]).mT @ wide(a[:, 0]))

    def norm(self) -> Tensor:
        parts = [
            torch.stack([outer_norm(ag, gg)[0] for ag, gg in zip(a, g, strict=True)]).sum(0)
            for a, g in self._chunks(self._outer.unsqueeze(0))
        ]
        return torch.cat(parts)

    def dot(self, W: Tensor) -> Tensor:
        inner, outer, W = alike(self._inner.flatten(0, 1), self._outer.flatten(0, 1), W)
        products = []
        for w in W:
            response = self._convolve(inner, w, outer)
            products.append((response * outer).reshape(self._inner.shape[0], -1).sum(1))
        return torch.stack(products, 1)

    def weighted_sum(self, c: Tensor) -> Tensor:
        inner, outer, c = alike(self._inner.flatten(0, 1), self._outer.flatten(0, 1), c)
        per_image = c.repeat_interleave(self._inner.shape[1], 1)
        spread = [-1] + [1] * (outer.ndim - 1)
        if inner.numel() < outer.numel():  # multiply the weights into the smaller of the two
            return torch.stack(
                [self._weight_gradient(inner * w.view(spread), outer) for w in per_image]
            )
        return torch.stack(
            [self._weight_gradient(inner, outer * w.view(spread)) for w in per_image]
        )

    def rows(self) -> Tensor:
        return torch.stack([self.sample(n).flatten() for n in range(self._inner.shape[0])])

    def kept(self) -> Sequence[Tensor]:
        return (self._inner, self._outer)

    def _convolve(self, inner: Tensor, w: Tensor, outer: Tensor) -> Tensor:
        """The convolution itself, cut or padded to the positions of ``outer``."""
        zeros = (0,) * len(self._stride)
        response = torch.ops.aten.convolution(
            inner, w, None, self._stride, self._padding, self._dilation, False, zeros, self._groups
        )
        return response[tuple(slice(0, size) for size in outer.shape)]

    def _weight_gradient(self, inner: Tensor, outer: Tensor) -> Tensor:
        zeros = (0,) * len(self._stride)
        return torch.ops.aten.convolution_backward(
            outer,
            inner,
            inner.new_empty(self._shape),
            None,
            self._stride,
            self._padding,
            self._dilation,
            False,
            zeros,
            self._groups,
            (False, True, False),
        )[1]

    def _chunks(self, outer: Tensor) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """a and g of each group of channels for a few samples at a time, as windows where that saves the unfolding.

        Args:
            outer: ``[V, N, R, O, *positions]``.
        """
        samples = self._inner.shape[0]
        in_windows = len(self._stride) == 2 and self._groups == 1 and self._dilation[1] == 1
        elements = self._inner[0].numel()
        if not in_windows or self._inner.is_cuda:  # the kernels unfold windows on CUDA
            positions = math.prod(self._outer.shape[3:])
            window = math.prod(self._shape[2:])
            elements = self._inner.shape[1] * self._inner.shape[2] * window * positions
        workspace = _CHUNK_BYTES.get(self._inner.device.type, _CHUNK_BYTES["cpu"])
        step = max(1, workspace // max(1, elements * self._inner.element_size()))
        padded = self._padded(min(step, samples))
        for start in range(0, samples, step):
            n = min(start + step, samples) - start
            if in_windows and self._inner.shape[1] == 1:
                # [n, P, Q, kernel height, kernel width · I]: each row of the window is contiguous
                g = outer[:, start : start + n, 0].flatten(3).mT
                yield [self._windows(start, start + n, padded).flatten(4)], [g]
            else:
                a, g = self._unfold(start, start + n, padded, outer)
                yield list(a), list(g)

    def _padded(self, samples: int) -> Tensor | None:
        """Room for the padded images of some samples, [B, *padded size, I], with zeros about them."""
        if not any(self._padding):
            return None
        images, channels, *spatial = self._inner.shape[1:]
        size = [s + 2 * p for s, p in zip(spatial, self._padding, strict=True)]
        return self._inner.new_zeros(samples * images, *size, channels)

    def _windows(self, start: int, stop: int, padded: Tensor | None) -> Tensor:
        """The windows of some samples' images, [B, *positions, *kernel, I], as a view of their padded copy.

        Channels come last, so that a window's row is a run of neighbours: kernel width times channels.
        """
        inner = self._inner[start:stop].flatten(0, 1).movedim(1, -1)
        if padded is None:
            x = inner.contiguous()
        else:
            x = padded[: len(inner)]
            middle = [
                slice(p, p + s) for s, p in zip(inner.shape[1:-1], self._padding, strict=True)
            ]
            where = (slice(None), *middle)
            x[where] = inner
        spatial = x.stride()[1:-1]
        return x.as_strided(
            (x.shape[0], *self._outer.shape[3:], *self._shape[2:], x.shape[-1]),
            (
                x.stride(0),
                *(s * t for s, t in zip(spatial, self._stride, strict=True)),
                *(s * d for s, d in zip(spatial, self._dilation, strict=True)),
                1,
            ),
        )

    def _unfold(
        self, start: int, stop: int, padded: Tensor | None, outer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """a [groups, n, S, window·I/groups] and g [groups, V, n, S, O/groups] of some samples."""
        view = self._windows(start, stop, padded)
        outer = outer[:, start:stop]
        n, images, groups = stop - start, self._inner.shape[1], self._groups
        window = math.prod(self._shape[2:])
        a = view.reshape(n, -1, window, groups, view.shape[-1] // groups).permute(3, 0, 1, 2, 4)
        g = outer.reshape(len(outer), n, images, groups, outer.shape[3] // groups, -1)
        g = g.permute(3, 0, 1, 2, 5, 4)
        return a.flatten(3), g.reshape(groups, len(outer), n, -1, g.shape[-1])

    def _natural(self, product: Tensor) -> Tensor:
        """[groups, O/groups, window·I/groups] as D."""
        fan_out = product.shape[0] * product.shape[1]
        return product.reshape(fan_out, *self._shape[2:], -1).movedim(-1, 1)
