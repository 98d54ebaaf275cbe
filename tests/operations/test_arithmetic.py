"""Sums, differences, products and quotients."""

from __future__ import annotations

import torch
from facets import N, X, apart, per_sample, tangents, together

ROWS = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


test_a_tangent_is_the_derivative = tangents(
    {
        "add a broadcast": lambda x: x + 2 * x[:1],
        "add a number": lambda x: x + 1,
        "subtract": lambda x: torch.sub(x[:, :1], x, alpha=3),
        "subtract from a number": lambda x: 1 - x,
        "multiply": lambda x: x * x.flip(0),
        "multiply broadcast": lambda x: x[:1] * x,
        "multiply by a number": lambda x: 3 * x,
        "multiply by a constant": lambda x: x * X,
        "multiply a constant": lambda x: X * x,
        "divide": lambda x: x / (2 + x[:1] ** 2),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "mul by itself": ((N, 3), lambda x: x * x.sin()),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "behind a gate of zero": ((N, 3), lambda x: x + 0.0 * x.sum(0)),
        "a row for all": ((N, 3), lambda x: x + x[0]),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "add, first": ((3,), lambda w: w + ROWS),
        "add, second": ((2, 1), lambda w: torch.add(ROWS, w, alpha=3)),
        "sub, first": ((3,), lambda w: torch.sub(w, ROWS, alpha=3)),
        "sub, second": ((1, 3), lambda w: torch.sub(ROWS, w, alpha=3)),
        "mul, first": ((), lambda w: w * ROWS),
        "mul, second": ((3,), lambda w: ROWS * w),
        "div, first": ((2, 3), lambda w: w / ROWS),
    }
)
