"""Cumulative operations, and others along one dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import N, apart, other_ways, tangents, together

test_a_tangent_is_the_derivative = tangents(
    {
        "cumsum": lambda x: x.cumsum(0),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "cumsum": ((N, 3), lambda x: x.cumsum(1)),
        "logcumsumexp": ((N, 3), lambda x: x.logcumsumexp(-1)),
        "cumprod of the last": ((3, N), lambda x: x.cumprod(0).T),
        "glu": ((N, 6), lambda x: F.glu(x)),
        "fft": ((N, 5), lambda x: torch.fft.rfft(x).abs()),
        "inverse fft": ((N, 3), lambda x: torch.fft.irfft(x.to(torch.complex128))),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "cumsum over samples": ((N, 3), lambda x: x.cumsum(0)),
    }
)

test_other_ways_have_its_value_and_both_derivatives = other_ways(
    "LogcumsumexpBackward0",
    {
        "function": lambda x: torch.logcumsumexp(x, 0),
        "method": lambda x: x.logcumsumexp(-1),
        "keyword": lambda x: torch.logcumsumexp(x, dim=1),
    },
)
