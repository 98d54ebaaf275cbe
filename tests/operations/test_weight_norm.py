"""Weight normalisation."""

from __future__ import annotations

import torch
from facets import other_ways

test_the_composed_one_has_its_value_and_both_derivatives = other_ways(
    "WeightNormInterfaceBackward0",
    {
        "by row": lambda x: torch._weight_norm(x, x[:, :1].exp(), 0),
        "by column": lambda x: torch._weight_norm(x, x[:1].exp(), 1),
        "by keyword": lambda x: torch._weight_norm(x, x[:1].exp(), dim=1),
    },
)
