"""Tangents carried up a kept graph, against the derivative of the gradient by what it is linear in."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from facets import X, assert_tangent, by_double_backward
from models import CASES, make
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvext as cx
from curvext.graph.autograd_graph import Graph
from curvext.products.tangents import Tangents

torch.manual_seed(0)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.by_differences])
def test_a_tangent_is_the_derivative_of_the_pulled_back_gradient(name, device):
    model, x = make(name, device)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(**x) if isinstance(x, dict) else model(x)
    output = getattr(output, "logits", output)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if Tangents.missing(Graph(output, parameters)):
        pytest.skip("a function written in Python: this network takes double backward")
    assert_tangent(output, parameters)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def test_a_function_written_in_python_is_said_to_be_missing():
    x = X.clone().requires_grad_()
    assert Tangents.missing(Graph(_Cube.apply(x).sum(), [x])) == {"_CubeBackward"}


def test_a_function_of_the_user_is_not_taken_for_ours_by_its_name():
    """The user's GELU is the one with tanh, and its class has the plain name."""

    class Gelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.gelu(x, approximate="tanh")

        @staticmethod
        def backward(ctx, g):
            return torch.ops.aten.gelu_backward(g, *ctx.saved_tensors, approximate="tanh")

    x = X.clone().requires_grad_()
    assert Tangents.missing(Graph(Gelu.apply(x).sum(), [x])) == {"GeluBackward"}


def test_what_does_not_lead_to_a_parameter_is_not_missed():
    x, constant = X.clone().requires_grad_(), X.clone().requires_grad_()
    assert Tangents.missing(Graph(x * _Cube.apply(constant), [x])) == set()


def test_a_network_of_python_functions_has_products_all_the_same(device):
    model = nn.Linear(4, 3, dtype=torch.float64, device=device)

    class Cubed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return _Cube.apply(self.inner(x))

    class Composed(Cubed):
        def forward(self, x):
            return self.inner(x) ** 3

    data = (X.to(device), torch.tensor([0, 1, 2], device=device))
    v = torch.randn(15, dtype=torch.float64, device=device)
    for operator in (cx.GGNOperator, cx.HessianOperator):
        a = operator(Cubed(), nn.CrossEntropyLoss(), data) @ v
        b = operator(Composed(), nn.CrossEntropyLoss(), data) @ v
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_output_that_is_a_parameter_moves_with_it():
    x = X.clone().requires_grad_()
    assert torch.equal(Tangents(Graph(x, [x]))([X]), X)


def test_the_second_output_of_the_last_operation_is_taken():
    x = X.clone().requires_grad_()
    assert torch.equal(Tangents(Graph(x.unbind(0)[1], [x]))([X]), X[1])


def test_tangents_have_the_dtype_of_what_moves(device):
    """Of bfloat16 inputs a norm keeps its statistics in float32 on CUDA, as it does on the CPU beside such weights."""
    wide = torch.float32 if device.type == "cpu" else torch.bfloat16
    x = torch.randn(3, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    w = torch.randn(4, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    scale, shift = (torch.randn(4, dtype=wide, device=device, requires_grad=True) for _ in range(2))
    normed = F.layer_norm(x, (4,), scale, shift)
    output = torch.add(F.gelu(normed) @ w, x.float() + w[:3])
    for leaves in ([x, w, scale, shift], [scale, shift], [x]):
        v = [torch.randn_like(p) for p in leaves]
        tangent = Tangents(Graph(output, leaves))(v)
        assert tangent.dtype is output.dtype
        expected = by_double_backward(output, leaves, v)
        torch.testing.assert_close(tangent, expected, rtol=0.05, atol=0.2)


def test_distances_beside_a_function_of_ones_own_have_g_v():
    """Neither has a tangent, and distances no second derivative in PyTorch: J v goes by the rows of J."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 3)
            self.points = nn.Parameter(torch.randn(2, 4, dtype=torch.float64))

        def forward(self, x):
            return self.b(Doubled.apply(torch.cdist(self.a(x), self.points)))

    torch.manual_seed(0)
    model = Net().double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    named = dict(model.named_parameters())
    jacobian = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(model, dict(zip(named, p, strict=True)), (x,)),
        tuple(named.values()),
    )
    J = torch.cat([j.reshape(5, 3, -1) for j in jacobian], 2)
    p = model(x).softmax(1).detach()
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = sum(j.T @ h @ j for j, h in zip(J, H, strict=True)) / 5
    assert_close(cx.GGNOperator(model, nn.CrossEntropyLoss(), (x, y)).to_dense(), expected)
