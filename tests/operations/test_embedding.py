"""Look-ups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import INDEX, N, X, apart, assert_tangent, per_sample, tangents, together

test_a_tangent_is_the_derivative = tangents(
    {
        "embedding": lambda x: F.embedding(torch.tensor([0, 1, 2, 1]), x),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "looked up in an activation": ((N, 3), lambda x: F.embedding(INDEX, x.tanh())),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "a table": ((3, 2), lambda x: F.embedding(INDEX % 3, x)),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "rows": ((6, 2), lambda w: F.embedding(INDEX, w)),
        "rows of sequences": (
            (6, 2),
            lambda w: F.embedding(torch.stack([INDEX, INDEX * 0 + 5], 1), w),
        ),
        "padding": ((6, 2), lambda w: F.embedding(INDEX, w, padding_idx=3)),
    }
)


def test_the_row_of_padding_has_no_tangent_as_it_has_no_gradient():
    x = X.clone().requires_grad_()
    assert_tangent(F.embedding(torch.tensor([0, 1, 2, 1]), x, padding_idx=1), [x])
