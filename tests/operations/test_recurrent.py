"""Packed sequences."""

from __future__ import annotations

import torch
from facets import (
    N,
    apart,
)
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence


def packed(x: Tensor) -> Tensor:
    rows = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]), batch_first=True).data
    return torch.zeros(N, 2).index_add(0, torch.tensor([0, 1, 2, 3, 0, 1, 2, 0]), rows)


test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "packed sequences": ((N, 3, 2), packed),
    }
)
