"""GELU, by PyTorch and in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from facets import X, other_ways, tangents
from torch import nn

import curvext as cx
from curvext.operations.gelu import ClosedFormGelu

test_a_tangent_is_the_derivative = tangents(
    {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }
)


def test_the_closed_form_gelu_has_the_derivatives_of_pytorch_s(device):
    x = torch.linspace(-6, 6, 41, dtype=torch.float64, device=device, requires_grad=True)
    g = torch.randn(41, dtype=torch.float64, device=device)
    derivatives = []
    for function in (F.gelu, ClosedFormGelu.apply):
        (slope,) = torch.autograd.grad(function(x), x, g, create_graph=True)
        derivatives.append((slope, *torch.autograd.grad(slope, x, g)))
    for ours, theirs in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(ClosedFormGelu.apply, x)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_hessian_of_a_network_with_gelu_is_that_of_the_dense_oracle(approximate, device):
    layers = nn.Linear(4, 5), nn.GELU(approximate), nn.Linear(5, 3)
    model = nn.Sequential(*layers).to(device, torch.float64)
    x, y = X.to(device), torch.tensor([0, 1, 2], device=device)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value(theta):
        parts, start = {}, 0
        for name, p in model.named_parameters():
            parts[name] = theta[start : start + p.numel()].view_as(p)
            start += p.numel()
        return F.cross_entropy(torch.func.functional_call(model, parts, x), y)

    dense = torch.autograd.functional.hessian(value, flat)
    H = cx.HessianOperator(model, nn.CrossEntropyLoss(), (x, y))
    torch.testing.assert_close(H.to_dense(), dense, rtol=1e-10, atol=1e-12)
    G = cx.GGNOperator(model, nn.CrossEntropyLoss(), (x, y))
    torch.testing.assert_close(
        H.to_dense() - G.to_dense(),
        cx.ModelCurvatureOperator(model, nn.CrossEntropyLoss(), (x, y)).to_dense(),
        rtol=1e-10,
        atol=1e-12,
    )


test_other_ways_have_its_value_and_both_derivatives = other_ways(
    "GeluBackward0",
    {
        "function": F.gelu,
        "module": nn.GELU(),
    },
)
