"""Loss functions inside a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import INDEX, MASK, N, apart

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "cross entropy": ((N, 3), lambda x: F.cross_entropy(x, INDEX % 3, reduction="none")),
        "cross entropy of images": (
            (N, 3, 2),
            lambda x: F.cross_entropy(x, MASK[:, :2].long(), reduction="none").mean(1),
        ),
        "squared error": (
            (N, 3),
            lambda x: F.mse_loss(x, torch.ones(N, 3), reduction="none").mean(1),
        ),
        "binary cross entropy": (
            (N, 3),
            lambda x: F.binary_cross_entropy_with_logits(x, MASK.double(), reduction="none"),
        ),
    }
)
