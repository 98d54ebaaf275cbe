"""What joins, repeats, turns and cuts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import INDEX, N, X, apart, tangents
from torch import Tensor


def in_place(write):
    def call(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape)
        write(out, x)
        return out

    return call


test_a_tangent_is_the_derivative = tangents(
    {
        "cat": lambda x: torch.cat([x, X, 2 * x], 1),
        "stack": lambda x: torch.stack([x, x.exp()]),
        "repeat": lambda x: x.repeat(2, 1),
        "pad": lambda x: F.pad(x, (1, 2)),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "joined loop": ((N, 3), lambda x: torch.cat([x[i : i + 1] * i for i in range(N)])),
        "joined with constants": ((N - 1, 3), lambda x: torch.cat([torch.ones(1, 3), x])),
        "stacked along the last": ((N, 3), lambda x: torch.stack([x, x * 2], -1)),
        "repeated": ((N, 3), lambda x: x.repeat(1, 2)),
        "interleaved": ((N, 3), lambda x: x.repeat_interleave(2, 0).view(N, 2, 3)),
        "flipped": ((N, 3), lambda x: x.flip(0, 1)),
        "rolled": ((N, 3), lambda x: x.roll((1, 2), (0, 1))),
        "rolled flat": ((N, 3), lambda x: x.roll(3)),
        "padded": ((N - 1, 3), lambda x: F.pad(x, (0, 1, 1, 0))),
        "cropped": ((N + 2, 3), lambda x: F.pad(x, (0, 0, -1, -1))),
        "windows": ((N, 6), lambda x: x.unfold(1, 3, 2)),
        "windows of rows": ((2 * N, 3), lambda x: x.unfold(0, 2, 2)),
        "diagonal": ((N, N), lambda x: x.diagonal()),
        "diagonals": ((N, 3, 3), lambda x: x.diagonal(1, 1, 2)),
        "slice replaced": ((N, 3), lambda x: torch.slice_scatter(torch.zeros(N, 5), x, 1, 1, 4)),
        "row replaced": ((3,), lambda x: torch.select_scatter(torch.zeros(N, 3), x, 0, 2)),
        "real and imaginary": (
            (N, 3, 2),
            lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j),
        ),
        "written by index": ((N, 3), in_place(lambda out, x: out.__setitem__(INDEX, x))),
    }
)
