"""Pools, resizing and windows of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import N, apart, tangents

test_a_tangent_is_the_derivative = tangents(
    {
        "max_pool1d": lambda x: F.max_pool1d(x[None], 2),
        "max_pool2d": lambda x: F.max_pool2d(x[None, None], 2, padding=1),
        "max_pool3d": lambda x: F.max_pool3d(x.view(1, 1, 3, 2, 2), 2),
        "avg_pool": lambda x: F.avg_pool2d(x[None, None], 2),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "max pool": ((N, 2, 4, 4), lambda x: F.max_pool2d(x, 2)),
        "average pool": ((N, 2, 4), lambda x: F.avg_pool1d(x, 2)),
        "adaptive pool": ((N, 2, 4, 4), lambda x: F.adaptive_avg_pool2d(x, 3)),
        "upsample": ((N, 2, 2, 2), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        "reflect": ((N, 2, 4), lambda x: F.pad(x, (1, 2), mode="reflect")),
        "pixel shuffle": ((N, 4, 2, 2), lambda x: F.pixel_shuffle(x, 2)),
        "unfolded images": ((N, 2, 3, 3), lambda x: F.unfold(x, 2)),
        "folded images": ((N, 8, 4), lambda x: F.fold(x, (3, 3), 2)),
        "grid sample": (
            (N, 2, 3, 3),
            lambda x: F.grid_sample(x, torch.zeros(N, 2, 2, 2), align_corners=True),
        ),
    }
)
