"""Layer norm, by PyTorch and in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from facets import N, X, apart, derivatives, other_ways, per_sample, tangents, together

from curvext.graph.autograd_graph import Graph
from curvext.operations import alternative
from curvext.operations.layer_norm import ClosedFormLayerNorm, layer_norm_in_closed_form
from curvext.products.tangents import Tangents

ROWS = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


test_a_tangent_is_the_derivative = tangents(
    {
        "layer_norm without weight": lambda x: F.layer_norm(x, (4,)),
        "layer_norm": lambda x: F.layer_norm(x, (4,), x[0], x[1]),
        "layer_norm with weight alone": lambda x: F.layer_norm(X, (4,), x[0]),
        "layer_norm with bias alone": lambda x: F.layer_norm(X, (4,), None, x[0]),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "layer norm": ((N, 3, 2), lambda x: F.layer_norm(x, (3, 2))),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "a scale": ((3,), lambda x: F.layer_norm(torch.ones(N, 3), (3,), x)),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "weight": ((3,), lambda w: F.layer_norm(ROWS, (3,), w)),
        "weight of two dimensions": ((2, 3), lambda w: F.layer_norm(ROWS, (2, 3), w)),
        "bias": ((3,), lambda w: F.layer_norm(ROWS, (3,), None, w)),
    }
)


#: shape, normalised dimensions, whether there is a weight, a bias
NORMS = {
    "affine": ((3, 4, 5), (5,), True, True),
    "without bias": ((3, 4, 5), (5,), True, False),
    "plain": ((3, 4, 5), (5,), False, False),
    "two dimensions": ((3, 4, 5), (4, 5), True, True),
    "one row": ((6,), (6,), True, True),
}


@pytest.fixture(params=NORMS)
def norm(request, device, monkeypatch):
    monkeypatch.setattr(alternative, "_CHUNK", 12)  # rows of two or more runs
    shape, dims, *parts = NORMS[request.param]
    torch.manual_seed(0)
    kind = {"dtype": torch.float64, "device": device, "requires_grad": True}
    inputs = [torch.randn(shape, **kind)] + [torch.randn(dims, **kind) for has in parts if has]
    return dims, inputs


def layer_norm(dims, x, weight=None, bias=None):
    return ClosedFormLayerNorm.apply(x, weight, bias, dims, 1e-2)


def test_the_closed_form_layer_norm_has_the_derivatives_of_pytorch_s(norm):
    dims, inputs = norm
    y = layer_norm(dims, *inputs)
    g = torch.randn_like(y, requires_grad=True)
    u = [torch.randn_like(t) for t in inputs]
    ours = derivatives(y, inputs, g, u)
    theirs = derivatives(F.layer_norm(inputs[0], dims, *inputs[1:], eps=1e-2), inputs, g, u)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda *t: layer_norm(dims, *t), inputs)


def test_the_tangent_of_the_closed_form_layer_norm_is_that_of_pytorch_s(norm):
    dims, inputs = norm
    moved = [torch.randn_like(t) for t in inputs]
    # named, as a node lives as long as its tensor
    ours = layer_norm(dims, *inputs)
    theirs = F.layer_norm(inputs[0], dims, *inputs[1:], eps=1e-2)
    got, expected = (Tangents(Graph(y, inputs))(moved) for y in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)


def test_a_layer_norm_that_the_closed_form_lacks_is_left_to_pytorch(device):
    x = torch.randn(3, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(4, device=device, dtype=torch.bfloat16)
    with layer_norm_in_closed_form():
        half = F.layer_norm(x, (4,), ones)
        only_bias = F.layer_norm(x.float(), (4,), None, ones.float())
        closed = F.layer_norm(x.float(), (4,), ones.float(), ones.float())
    assert half.grad_fn.name() == only_bias.grad_fn.name() == "NativeLayerNormBackward0"
    assert closed.grad_fn.name() == "ClosedFormLayerNormBackward"


test_other_ways_have_its_value_and_both_derivatives = other_ways(
    "NativeLayerNormBackward0",
    {
        "plain": lambda x: F.layer_norm(x, (4,)),
        "with weight": lambda x: F.layer_norm(x, (4,), x[0]),
        "with weight and bias": lambda x: F.layer_norm(x, (4,), x[0], x[1], eps=0.1),
    },
)
