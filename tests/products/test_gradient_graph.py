"""The backward pass that second derivatives are taken of: what it leaves out, and that nothing is missing then."""

from __future__ import annotations

import itertools

import pytest
import torch
from compare import assert_close
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import curvext as cx
from curvext.graph.autograd_graph import Graph
from curvext.products.gradient_graph import GradientGraph

WIDTHS = (6, 8, 8, 3)
N = 5


def flops_of(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_an_uncached_hessian_product_computes_no_gradient_that_is_not_read():
    layers = [nn.Linear(i, o, bias=False) for i, o in itertools.pairwise(WIDTHS)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    data = (torch.randn(N, WIDTHS[0]), torch.randint(WIDTHS[-1], (N,)))
    H = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, cache=False).hessian()
    v = torch.randn(H.shape[0])
    H @ v  # what is learnt in the first pass is not counted
    first, *others = (2 * N * w.numel() for w in model.parameters())
    # everywhere: f, x Vᵀ and the weight's gradient; past the first layer also, by x: the gradient that is kept,
    # its derivatives by g and by W, that of x Vᵀ, and the pass down through the network
    expected = 3 * first + 8 * sum(others)
    assert flops_of(lambda: H @ v) == expected


def double_backward(model, data, v):
    loss = nn.functional.mse_loss(model(data[0]), data[1])
    parameters = list(model.parameters())
    w = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([t.flatten() for t in w])
    return torch.cat([t.flatten() for t in torch.autograd.grad(flat, parameters, v)])


class _Shared(nn.Module):
    """W in a product, and ``elsewhere`` in another way."""

    def __init__(self, elsewhere):
        super().__init__()
        self.w, self.u = (nn.Parameter(torch.randn(4, 4) / 2) for _ in range(2))
        self.elsewhere = elsewhere

    def forward(self, x):
        return self.elsewhere(self, torch.tanh(x @ self.w))


ELSEWHERE = {
    "in another product": lambda m, y: torch.tanh(y @ m.w) @ m.u,
    "transposed": lambda m, y: torch.tanh(y @ m.w.t()) @ m.u,
    "in a product of parameters": lambda m, y: y @ (m.w @ m.u),
    "in a product with itself": lambda m, y: y @ (m.w @ m.w) @ m.u,
    "element by element": lambda m, y: y * m.w.sin() + y @ m.u,
    "behind a function": lambda m, y: y @ m.u.exp() @ m.w,
    "half of it": lambda m, y: y @ m.w[:, :2] @ m.u[:2],
    "as a row": lambda m, y: torch.addmm(m.u[1], y, m.w, beta=2, alpha=3),
    "as the output": lambda m, y: m.w + (y @ m.u).mean(),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_use_of_a_weight_counts(name, device):
    torch.manual_seed(0)
    model = _Shared(ELSEWHERE[name]).to(device, torch.float64)
    data = tuple(torch.randn(4, 4, dtype=torch.float64, device=device) for _ in range(2))
    H = cx.HessianOperator(model, nn.MSELoss(), data)
    v = torch.randn(H.shape[0], dtype=torch.float64, device=device)
    assert_close(H @ v, double_backward(model, data, v), name)


def parts(call):
    """Which gradients of :class:`_Shared`'s parameters are formed, and at how many products they are not."""
    model = _Shared(call)
    output = model(torch.randn(4, 4))
    parameters = list(model.parameters())
    graph = Graph(output, parameters)
    residual = 2 * output
    first = GradientGraph(graph, output, residual, parameters)
    return [parameters[i] is model.w for i, _ in first._rest], len(first._nodes)


@pytest.mark.parametrize(
    "name, formed, products",
    [
        ("in another product", [], 3),
        ("in a product of parameters", [], 2),
        ("element by element", [True], 1),
        ("behind a function", [False], 2),
    ],
)
def test_a_gradient_is_formed_only_of_what_is_used_in_another_way(name, formed, products):
    assert parts(ELSEWHERE[name]) == (formed, products)
