"""What is broadcast."""

from __future__ import annotations

from facets import N, apart, per_sample, tangents

test_a_tangent_is_the_derivative = tangents(
    {
        "expand": lambda x: x[:, None].expand(3, 2, 4),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "expanded": ((N, 1, 3), lambda x: x.expand(N, 5, 3)),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "expand": ((3,), lambda w: w.expand(N, 2, 3)),
        "expand of one": ((2, 1), lambda w: w.expand(N, 2, 3)),
    }
)
