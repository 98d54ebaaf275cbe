"""Hardsigmoid."""

from __future__ import annotations

import torch.nn.functional as F
from facets import (
    tangents,
)

test_a_tangent_is_the_derivative = tangents(
    {
        "hardsigmoid": F.hardsigmoid,
    }
)
