"""Packed sequences."""

from __future__ import annotations

import pytest
import torch
from facets import N, apart
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from curvext.graph.autograd_graph import node_names
from curvext.operations.table import operation


def packed(x: Tensor) -> Tensor:
    rows = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]), batch_first=True).data
    return torch.zeros(N, 2).index_add(0, torch.tensor([0, 1, 2, 3, 0, 1, 2, 0]), rows)


test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "packed sequences": ((N, 3, 2), packed),
    }
)


def test_a_fused_layer_is_unrolled_with_its_value_and_gradient():
    torch.manual_seed(0)
    layer, x = nn.LSTM(4, 3), torch.randn(2, 5, 4)
    ways = operation("MkldnnRnnLayerBackward0").alternatives
    assert ways == dict.fromkeys(ways, ways["backward"])
    fused = layer(x)[0]
    if "MkldnnRnnLayerBackward0" not in node_names(fused.grad_fn):
        pytest.skip("this build has no fused layer on the CPU")
    with ways["backward"]():
        unrolled = layer(x)[0]
    assert "MkldnnRnnLayerBackward0" not in node_names(unrolled.grad_fn)
    assert_close(unrolled, fused)
    g = torch.randn_like(fused)
    parameters = list(layer.parameters())
    gradients = [torch.autograd.grad(y, parameters, g) for y in (unrolled, fused)]
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs)
