"""Matrix functions and distances."""

from __future__ import annotations

import torch
from facets import N, apart, together

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "cross": ((N, 3), lambda x: torch.linalg.cross(x, torch.ones(N, 3))),
        "inverse": ((N, 3, 3), lambda x: torch.linalg.inv(x + 5 * torch.eye(3))),
        "determinant": ((N, 3, 3), torch.linalg.det),
        "solve": (
            (N, 3, 3),
            lambda x: torch.linalg.solve(x + 5 * torch.eye(3), torch.ones(N, 3, 1)),
        ),
        "cholesky": ((N, 3, 3), lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3))),
        "distances within": ((N, 3, 2), lambda x: torch.cdist(x, x + 1)),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "distances between samples": ((N, 3), lambda x: torch.cdist(x, x)),
    }
)
