"""Functions of the user's own: those that can be differentiated once, and those that cannot be seen."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import Model
from oracles import Oracle
from torch import nn

import curvext as cx


class OnceDifferentiable(torch.autograd.Function):
    """x³ with a backward that PyTorch is told not to differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class OutsideOfPyTorch(OnceDifferentiable):
    """The same with a backward that PyTorch does not see, as kernels of one's own are."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (3 * x**2 * g).detach()


class Written(torch.autograd.Function):
    """x³ and −x in operations of PyTorch, with an input that has no gradient and an output that is none."""

    @staticmethod
    def forward(ctx, x, power):
        ctx.save_for_backward(x)
        largest = x.argmax(1)
        ctx.mark_non_differentiable(largest)
        return x**power, largest, -x

    @staticmethod
    def backward(ctx, g, _, h):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g - h, None


class Stopped(torch.autograd.Function):
    """x with the derivative zero: nothing is lost."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g.detach())


def between_layers(function, device):
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)}
    model = Model(lambda s, x: s.b(function(s.a(x).tanh())), **layers).double().to(device)
    x = torch.randn(6, 4, dtype=torch.float64, device=device)
    return model, x, torch.randint(3, (6,), device=device)


@pytest.mark.parametrize("options", [{}, {"params": "a.*"}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize("kind", ["hessian", "ggn", "model_curvature", "fisher"])
@pytest.mark.parametrize("function", [OnceDifferentiable, OutsideOfPyTorch])
def test_an_operation_without_second_derivative_is_named(function, kind, options, device):
    model, x, y = between_layers(function.apply, device)
    operator = getattr(cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), **options), kind)()
    with pytest.raises(RuntimeError, match=f"{function.__name__}Backward has no second derivative"):
        operator @ torch.ones(operator.shape[0], dtype=torch.float64, device=device)


@pytest.mark.parametrize("function", [OnceDifferentiable, OutsideOfPyTorch])
def test_an_operation_without_second_derivative_has_all_first_order_answers(function, device):
    model, x, y = between_layers(function.apply, device)
    loss = nn.CrossEntropyLoss()
    oracle = Oracle(model, loss, x, y)
    E = cx.EmpiricalFisherOperator(model, loss, (x, y))
    v = torch.randn(oracle.size, dtype=torch.float64, device=device)
    expected = oracle.empirical_fisher()
    assert_close(E @ v, expected @ v)
    assert_close(E.diagonal(), expected.diagonal())
    assert_close(E.gram(), oracle.sample_gradients() @ oracle.sample_gradients().T)
    assert_close(cx.ggn_diagonal(model, loss, (x, y))["a.bias"], oracle.ggn().diagonal()[20:25])
    # it is above what is asked for, or not in the way
    above = Oracle(model, loss, x, y, ["b.weight", "b.bias"])
    H = cx.HessianOperator(model, loss, (x, y), params="b.*")
    assert_close(H @ v[:18], above.hvp(v[:18, None]).squeeze(1))


@pytest.mark.parametrize(
    "function", [lambda x: sum(Written.apply(x, 3)[::2]), lambda x: x + Stopped.apply(x)]
)
def test_functions_whose_backward_can_be_differentiated_are_not_refused(function, device):
    model, x, y = between_layers(function, device)
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    V = torch.randn(oracle.size, 2, dtype=torch.float64, device=device)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
