"""Windows of images, as a convolution sees them, and the same written out."""

from __future__ import annotations

import torch
from torch import Tensor

#: height and width, channels, kernel, stride
IMAGES = [
    ((5, 4), 1, (2, 3), 1),
    ((9, 9), 3, (3, 3), 2),
    ((14, 13), 40, (3, 2), 1),  # more positions than a panel, more features than one vector
    ((4, 4), 130, (2, 2), 1),  # more features than a block of the result
    ((5, 4), 70, (4, 3), 1),  # a second block that begins within a run and goes beyond it
    ((3, 3), 2, (3, 3), 1),  # a single position
    ((40, 6), 2, (1, 1), 1),
    ((0, 4), 2, (0, 1), 1),
]


def windows_of(
    image: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    dtype: torch.dtype,
    device: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows [N,S1,S2,I1,I2] as a view, the same as [N,S,I], and g [V,N,S,O] whose positions are neighbours."""
    N, O = 3, 19
    x = torch.randn(N, *image, channels).to(device, dtype)
    lines, line = ((e - k) // stride + 1 for e, k in zip(image, kernel, strict=True))
    s = x.stride()
    windows = x.as_strided(
        (N, lines, line, kernel[0], kernel[1] * channels),
        (s[0], s[1] * stride, s[2] * stride, s[1], 1),
    )
    a = windows.reshape(N, lines * line, kernel[0] * kernel[1] * channels)
    return windows, a, torch.randn(2, N, O, lines * line).to(device, dtype).mT
