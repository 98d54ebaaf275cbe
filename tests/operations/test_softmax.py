"""Softmax and its logarithm."""

from __future__ import annotations

from facets import N, apart, tangents, together

test_a_tangent_is_the_derivative = tangents(
    {
        "softmax": lambda x: x.softmax(0),
        "log_softmax": lambda x: x.log_softmax(-1),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "softmax": ((N, 3), lambda x: x.softmax(1)),
        "log_softmax of images": ((N, 3, 2), lambda x: x.log_softmax(1)),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "softmax over samples": ((N, 3), lambda x: x.softmax(0)),
    }
)
