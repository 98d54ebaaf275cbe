"""Convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import N, X, apart, per_sample, tangents, together

IMAGES = torch.randn(N, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
KERNEL = torch.ones(3, 2, 2, dtype=torch.float64)


test_a_tangent_is_the_derivative = tangents(
    {
        "conv1d": lambda x: F.conv1d(x[None], x.view(2, 3, 2), x[0, :2], padding=1),
        "conv2d of a constant": lambda x: F.conv2d(X.view(1, 1, 3, 4), x.view(3, 1, 2, 2)),
        "conv2d by a constant": lambda x: F.conv2d(x.view(1, 1, 3, 4), X.view(3, 1, 2, 2)),
        "conv2d, bias alone": lambda x: F.conv2d(X.view(1, 1, 3, 4), X.view(3, 1, 2, 2), x[:, 0]),
        "transposed convolution": lambda x: F.conv_transpose1d(x[None], x.view(3, 2, 2), stride=2),
        "grouped convolution": lambda x: F.conv1d(x[:2][None], x[:2].view(4, 1, 2), groups=2),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "convolution": ((N, 2, 5), lambda x: F.conv1d(x, torch.ones(3, 2, 2))),
        "transposed convolution": ((N, 2, 5), lambda x: F.conv_transpose1d(x, torch.ones(2, 3, 2))),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "a kernel": ((3, 2, 2), lambda x: F.conv1d(torch.ones(N, 2, 5), x)),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "weight": ((3, 2, 2), lambda w: F.conv1d(IMAGES, w, stride=2, padding=1)),
        "weight in groups": ((4, 1, 2), lambda w: F.conv1d(IMAGES, w, dilation=2, groups=2)),
        "weight, transposed": ((2, 3, 2), lambda w: F.conv_transpose1d(IMAGES, w, stride=2)),
        "weight of two images each": (
            (3, 2, 2),
            lambda w: F.conv1d(torch.cat([IMAGES, IMAGES]), w),
        ),
        "bias": ((3,), lambda w: F.conv1d(IMAGES, KERNEL, w)),
    }
)
