"""Reductions over some dimensions or all."""

from __future__ import annotations

import torch
from facets import N, apart, tangents, together

test_a_tangent_is_the_derivative = tangents(
    {
        "mean": lambda x: x.mean((0, -1), keepdim=True),
        "mean of all": lambda x: x.mean(),
        "sum": lambda x: x.sum(-1),
        "sum of all": lambda x: x.sum(),
        "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
        "max": lambda x: x.max(1).values,
        "amax": lambda x: x.amax(0),
        "logsumexp": lambda x: x.logsumexp(1),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "sum": ((N, 3, 2), lambda x: x.sum((1, 2))),
        "mean keeping": ((3, N), lambda x: x.mean(0, keepdim=True).T),
        "variance": ((N, 3), lambda x: x.var(1)),
        "variance and mean": ((N, 3), lambda x: torch.stack(torch.var_mean(x, 1), 1)),
        "norm": ((N, 3), lambda x: x.norm(dim=1)),
        "vector norm": ((N, 3), lambda x: torch.linalg.vector_norm(x, dim=1)),
        "logsumexp": ((N, 3), lambda x: x.logsumexp(1)),
        "maximum": ((N, 3), lambda x: x.max(1)[0]),
        "median": ((N, 3), lambda x: x.median(1)[0]),
        "product": ((N, 3), lambda x: x.prod(1)),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "centred": ((N, 3), lambda x: x - x.mean(0)),
    }
)
