"""Hooks on tensors, nodes and modules: what they do to gradients is seen, or is set aside, and never half of it."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from oracles import Oracle
from torch import nn

import curvext as cx

N, I, O = 4, 3, 2


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Hooked(nn.Module):
    """Two linear layers; ``hook`` is put on what lies between them."""

    def __init__(self, put):
        super().__init__()
        self.a, self.b, self.put = nn.Linear(I, 4), nn.Linear(4, O), put

    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.put(h)
        return self.b(h)


def data():
    return torch.randn(N, I), torch.tensor([0, 1, 0, 1])


class _Solved(torch.autograd.Function):
    """What a solver without graph gives: the cotangent times a matrix, past autograd."""

    @staticmethod
    def solve(g):
        with torch.no_grad():
            matrix = torch.arange(16.0).view(4, 4) / 16 + torch.eye(4)
            return g.detach() @ matrix


LINEAR = {
    "halved": lambda h: h.register_hook(lambda g: g / 2) and None,
    "by_sample": lambda h: (
        h.register_hook(lambda g: g * torch.arange(1.0, 5).view(4, 1)) and None
        if len(h) == 4
        else h.register_hook(lambda g: g) and None
    ),
    "masked": lambda h: h.register_hook(lambda g: g * torch.tensor([1.0, 0, 1, 0])) and None,
    "solved_without_graph": lambda h: h.register_hook(_Solved.solve) and None,
    "on_the_node": lambda h: h.grad_fn.register_hook(lambda i, o: (i[0] / 2,)) and None,
    "before_the_node": lambda h: h.grad_fn.register_prehook(lambda o: (o[0] / 2,)) and None,
}


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("name", [n for n in LINEAR if n != "by_sample"])
def test_linear_hooks_count_in_products_with_g_and_h_is_refused(name, cache):
    model, (x, y) = Hooked(LINEAR[name]), data()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), cache=cache)
    G = oracle.ggn()  # its Jacobian is made by backward passes, through the hooks
    plain = Hooked(lambda h: None)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(G, Oracle(plain, nn.CrossEntropyLoss(), x, y).ggn())
    D = risk.ggn().to_dense()
    assert_close(D, D.T, "G is symmetric")
    assert_close(D, G)
    assert_close(risk.gradient(), oracle.gradient())
    g = oracle.sample_gradients()
    assert_close(risk.empirical_fisher().gradient_norms(), g.norm(dim=1))
    assert_close(risk.empirical_fisher().diagonal(), g.square().mean(0))
    assert_close(risk.ggn().diagonal(), G.diagonal())
    for product in (risk.hessian, risk.model_curvature):
        with pytest.raises(RuntimeError, match="hooks on tensors.*no second derivative"):
            product() @ torch.randn(oracle.size)
    assert "hooks on tensors" in risk.explain()


def test_j_by_double_backward_serves_where_outputs_are_many(monkeypatch):
    from curvext.products import jacobian_rows as rows

    monkeypatch.setattr(rows, "_OUTPUTS", 1)
    model, (x, y) = Hooked(LINEAR["halved"]), data()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    v = torch.randn(oracle.size)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    assert_close(risk.ggn() @ v, oracle.ggn() @ v)
    unseen = Hooked(LINEAR["solved_without_graph"])
    with pytest.raises(RuntimeError, match="no matrix J stands behind them"):
        cx.GGNOperator(unseen, nn.CrossEntropyLoss(), (x, y)) @ v


@pytest.mark.parametrize(
    "hook",
    [
        lambda g: g.clamp(-1e-3, 1e-3),
        lambda g: g / g.norm(),
        lambda g: g.sign(),
        lambda g: g + 1,
        lambda g: torch.where(g.abs() > 1e-4, g, 0),
    ],
)
def test_hooks_that_are_not_linear_are_refused(hook):
    model, batch = Hooked(lambda h: h.register_hook(hook) and None), data()
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch)
    with pytest.raises(RuntimeError, match="not linear in the gradient"):
        risk.ggn() @ torch.randn(risk.space.size)
    with pytest.raises(RuntimeError, match="not linear in the gradient"):
        risk.gradient()


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize(
    "put",
    [
        lambda h: h.register_hook(lambda g: None) and None,
        lambda h: h.register_hook(lambda g: g.detach().clone()) and None,
        lambda h: h.register_hook(lambda g: g.clamp(-1e6, 1e6)) and None,
        lambda h: h.retain_grad(),
    ],
    ids=["watching", "copying", "idle_clip", "retain_grad"],
)
def test_hooks_that_edit_nothing_leave_every_quantity_as_it_is(put, cache):
    def careful(h):
        return put(h) if h.requires_grad else None

    model, (x, y) = Hooked(careful), data()
    plain = Hooked(lambda h: None)
    plain.load_state_dict(model.state_dict())
    oracle = Oracle(plain, nn.CrossEntropyLoss(), x, y)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), cache=cache)
    V = torch.randn(oracle.size, 2)
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.model_curvature() @ V, oracle.hvp(V) - oracle.ggn() @ V)
    assert_close(risk.empirical_fisher() @ V, oracle.empirical_fisher() @ V)


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_backward_hooks_of_modules_are_set_aside_and_put_back(register):
    model, (x, y) = Hooked(lambda h: None), data()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    called = []

    def hook(*args):
        called.append(1)
        return tuple(g / 2 for g in args[-1] if g is not None) or None

    getattr(model.b, register)(lambda m, *g: hook(m, *g[:1]))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    V = torch.randn(oracle.size, 2)
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.gradient(), oracle.gradient())
    assert not called
    assert "set aside in all passes: backward hooks of b" in risk.explain()
    nn.functional.cross_entropy(model(x), y).backward()
    assert called


def test_a_wrapper_that_records_for_another_library_is_left_as_found():
    """As one for per-sample gradients: inputs are kept in the forward pass, and taken in the backward one."""
    model, (x, y) = Hooked(lambda h: None), data()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)

    def keep(module, inputs, output):
        if not hasattr(module, "activations"):
            module.activations = []
        module.activations.append(inputs[0].detach())

    def take(module, *gradients):
        module.activations.pop()

    for layer in (model.a, model.b):
        layer.register_forward_hook(keep)
        layer.register_full_backward_hook(take)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), cache=False)
    V = torch.randn(oracle.size, 2)
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.empirical_fisher() @ V, oracle.empirical_fisher() @ V)
    assert not hasattr(model.a, "activations") and not hasattr(model.b, "activations")


def test_hooks_on_tensors_are_refused_where_products_would_go_past_them():
    model, batch = Hooked(LINEAR["halved"]), data()
    for options, error in [
        ({"compile": "eager"}, RuntimeError),
        ({"chunk_outputs": 2}, ValueError),
    ]:
        risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, **options)
        with pytest.raises(error, match="puts hooks on tensors"):
            risk.ggn() @ torch.randn(risk.space.size)


def test_g_of_an_operation_without_second_derivative_goes_row_by_row():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(I, 4), nn.Linear(O, O)
            self.centres = nn.Parameter(torch.randn(O, 4))

        def forward(self, x):
            return self.b(torch.cdist(self.a(x), self.centres, p=3.0))

    model, (x, y) = Distances(), data()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    V = torch.randn(oracle.size, 2)
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.gradient(), oracle.gradient())
    with pytest.raises(RuntimeError, match="second derivative"):
        risk.hessian() @ V
