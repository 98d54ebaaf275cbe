"""Operations that need another way are found in the graph of a forward pass, for each use of the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import Oracle
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvext as cx
from curvext.evaluation.alternatives import Alternatives
from curvext.graph.autograd_graph import node_names


class _Cube(torch.autograd.Function):
    """x³ as a user writes it: its backward can be differentiated, and there is no tangent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Attending(nn.Module):
    def __init__(self, function=torch.tanh):
        super().__init__()
        self.qkv, self.head, self.function = nn.Linear(4, 12), nn.Linear(4, 3), function

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.head(self.function(y).mean(1))


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def has_fused_attention(output):
    return any("ScaledDotProduct" in name for name in node_names(output.grad_fn))


def found(model, x, use):
    """The output of passes until nothing more is found, and how many it took."""
    alternatives, passes = Alternatives.of(model), 0
    while True:
        with alternatives.taken(use):
            output = model(x)
        passes += 1
        if not alternatives.find(output, use):
            return output, passes


def test_a_pass_is_run_again_once_and_later_ones_take_the_other_way_at_once():
    model, x = Attending(), torch.randn(5, 6, 4)
    plain = model(x)
    assert has_fused_attention(plain)
    for passes in (2, 1):
        output, took = found(model, x, "twice")
        assert took == passes and not has_fused_attention(output)
        assert_close(output, plain)
    output, took = found(model, x, "linearised")  # whose tangents the library knows
    assert took == 1 and has_fused_attention(output)
    Alternatives.of(model).invalidate()
    assert found(model, x, "twice")[1] == 2


@pytest.mark.parametrize("before", [(), ("twice",), ("plain", "twice")])
def test_a_function_without_tangents_beside_attention_is_found_whatever_was_found_before(before):
    model, x = Attending(_Cube.apply), torch.randn(5, 6, 4)
    for use in before:
        found(model, x, use)
    output, took = found(model, x, "linearised")
    assert took == 2 and not has_fused_attention(output)
    assert found(model, x, "linearised")[1] == 1
    assert has_fused_attention(found(model, x, "backward")[0])


def test_products_with_g_after_h_are_right_where_a_function_has_no_tangents():
    model, x, y = Attending(_Cube.apply), torch.randn(5, 6, 4), torch.randint(3, (5,))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), cache=False)
    with sdpa_kernel(SDPBackend.MATH):
        oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
        H, G = oracle.hvp(torch.eye(risk.space.size)), oracle.ggn()
    assert_close(risk.hessian().to_dense(), H)
    assert_close(risk.ggn().to_dense(), G)


def test_an_operation_without_second_derivatives_is_refused_by_name_and_serves_backward_passes():
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 2))
    output = model(torch.randint(5, (4, 2)))
    alternatives = Alternatives()
    assert not alternatives.find(output, "backward")
    for use in ("linearised", "twice"):
        with pytest.raises(RuntimeError, match="EmbeddingBag has no second derivative"):
            alternatives.find(output, use)
