"""Hardsigmoid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import other_ways, tangents

test_a_tangent_is_the_derivative = tangents(
    {
        "hardsigmoid": F.hardsigmoid,
    }
)

test_other_ways_have_its_value_and_both_derivatives = other_ways(
    "HardsigmoidBackward0",
    {
        "function": F.hardsigmoid,
        "in place": lambda x: F.hardsigmoid(3 * x, inplace=True),
        "module": torch.nn.Hardsigmoid(),
        "keyword": lambda x: F.hardsigmoid(input=4 * x),
    },
    rtol=1e-7,  # PyTorch's slope is a sixth in single precision
)
