"""Rearrangements."""

from __future__ import annotations

import torch
from facets import N, apart, tangents

test_a_tangent_is_the_derivative = tangents(
    {
        "unbind": lambda x: x.unbind(1)[2] * x.unbind(1)[0],
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "transposed": ((3, N), lambda x: x.T),
        "sequence first": ((5, N, 3), lambda x: x.transpose(0, 1)),
        "permuted": ((2, 3, N), lambda x: x.permute(2, 0, 1)),
        "merged, batch first": ((N * 5, 3), lambda x: x.view(N, 5, 3)),
        "merged, sequence first": ((5 * N, 3), lambda x: x.view(5, N, 3).mean(0)),
        "merged twice": ((5 * N * 2, 3), lambda x: x.view(5, N, 2, 3).transpose(0, 1).flatten(1)),
        "folded into the columns": ((3, N * 2), lambda x: x.view(3, N, 2).transpose(0, 1)),
        "flat": ((N * 6,), lambda x: x.view(N, 2, 3)),
        "split of views": ((N, 6), lambda x: torch.cat(x.split([1, 2, 3], 1)[::-1], 1)),
        "chunks along samples": ((2 * N, 3), lambda x: x.chunk(2)[0] * x.chunk(2)[1]),
        "one of two": ((N, 2, 3), lambda x: x[:, 1]),
        "every second": ((N, 6), lambda x: x[:, 1::2]),
        "every second row": ((2 * N, 3), lambda x: x[::2]),
        "class token": ((N, 5, 3), lambda x: x[:, 0] + x[:, -1]),
        "unbound": ((N, 3), lambda x: torch.stack([row.tanh() for row in x.unbind(0)])),
        "loop over samples": ((N, 3), lambda x: torch.stack([x[i].cumsum(0) for i in range(N)])),
        "squeezed": ((N, 1, 3), lambda x: x.squeeze(1).unsqueeze(2)),
    }
)
