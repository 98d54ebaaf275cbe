"""An answer belongs to the model, the loss and the data as they are when it is asked for."""

from __future__ import annotations

import functools
import types
from collections import deque
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from problems import pose
from torch import nn

import curvext as cx

N, I, O = 4, 3, 2


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Net(nn.Module):
    """Two linear layers, and between them what ``act`` makes of the hidden values."""

    def __init__(self, act, **attributes):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(I, 4), nn.Linear(4, O), act
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.b(self.act(self, self.a(x)))


class Config:
    def __init__(self, scale):
        self.scale = scale
        self.self = self  # a circle


def scaled(factor):
    return lambda m, h: torch.tanh(factor(m) * h)


def leaky():
    m = Net(lambda m, h: m.leaky(h), leaky=nn.LeakyReLU())
    return m, lambda: setattr(m.leaky, "negative_slope", 0.9)


def number():
    m = Net(scaled(lambda m: m.t), t=1.0)
    return m, lambda: setattr(m, "t", 0.3)


def flag():
    m = Net(lambda m, h: torch.tanh(h) if m.smooth else torch.sin(h), smooth=True)
    return m, lambda: setattr(m, "smooth", False)


def string():
    m = Net(lambda m, h: getattr(torch, m.kind)(h), kind="tanh")
    return m, lambda: setattr(m, "kind", "sin")


def none():
    m = Net(lambda m, h: torch.tanh(h if m.shift is None else h + m.shift), shift=None)
    return m, lambda: setattr(m, "shift", 0.5)


def listed():
    m = Net(scaled(lambda m: m.scales[1]), scales=[1.0, 2.0])
    return m, lambda: m.scales.__setitem__(1, 0.1)


def mapped():
    m = Net(scaled(lambda m: m.scales["b"]["c"]), scales={"a": 1.0, "b": {"c": 2.0}})
    return m, lambda: m.scales["b"].update(c=0.1)


def configured():
    m = Net(scaled(lambda m: m.config.scale), config=Config(1.0))
    return m, lambda: setattr(m.config, "scale", 0.2)


def tensor_replaced():
    m = Net(scaled(lambda m: m.w), w=torch.ones(4))
    return m, lambda: setattr(m, "w", torch.full((4,), 0.3))


def tensor_written():
    m = Net(scaled(lambda m: m.w), w=torch.ones(4))
    return m, lambda: m.w.mul_(0.3)


def tensor_written_past_its_version():
    m = Net(scaled(lambda m: m.w), w=torch.ones(4))
    return m, lambda: m.w.data.mul_(0.3)


def tensor_in_a_list():
    m = Net(scaled(lambda m: m.w[0]), w=[torch.ones(4)])
    return m, lambda: m.w[0].data.mul_(0.3)


class Point(NamedTuple):
    scale: float


def named_tuple():
    m = Net(scaled(lambda m: m.point.scale), point=Point(1.0))

    def change():
        del m.point  # the next one may have its place in memory
        m.point = Point(0.3)

    return m, change


def keyed_by_objects():
    key = torch.zeros(2)
    m = Net(scaled(lambda m: m.scales[key]), scales={key: 1.0, torch.ones(2): 2.0})
    return m, lambda: m.scales.update({key: 0.2})


def array():
    m = Net(scaled(lambda m: float(m.w[0])), w=torch.ones(4).numpy())
    return m, lambda: m.w.__setitem__(0, 0.3)


def function():
    m = Net(lambda m, h: m.f(h), f=torch.tanh)
    return m, lambda: setattr(m, "f", torch.sin)


def partial():
    m = Net(lambda m, h: m.f(h), f=functools.partial(F.leaky_relu, negative_slope=0.1))
    return m, lambda: m.f.keywords.update(negative_slope=0.7)


def hidden_module():
    m = Net(lambda m, h: m.parts[0](h), parts=[nn.Softplus()])
    return m, lambda: setattr(m.parts[0], "beta", 3)


def forward_hook():
    m = Net(lambda m, h: torch.tanh(h))
    return m, lambda: m.a.register_forward_hook(lambda _, __, y: 0.3 * y)


def forward_pre_hook():
    m = Net(lambda m, h: torch.tanh(h))
    return m, lambda: m.b.register_forward_pre_hook(lambda _, x: (0.3 * x[0],))


def forward_hook_taken_away():
    m = Net(lambda m, h: torch.tanh(h))
    handle = m.a.register_forward_hook(lambda _, __, y: 0.3 * y)
    return m, handle.remove


def own_forward():
    m = Net(lambda m, h: torch.tanh(h))
    return m, lambda: setattr(
        m.a, "forward", types.MethodType(lambda s, x: F.linear(x, s.weight) * 0.3, m.a)
    )


def class_of_a_module():
    class Softened(nn.Linear):
        def forward(self, x):
            return 0.3 * super().forward(x)

    m = Net(lambda m, h: torch.tanh(h))
    return m, lambda: setattr(m.a, "__class__", Softened)


def forward_of_the_class():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    m = Net(lambda m, h: torch.tanh(m.c(h)), c=Own(4, 4))
    return m, lambda: setattr(Own, "forward", lambda s, x: F.linear(x, s.weight) * 0.3)


def dropped_bias():
    m = Net(lambda m, h: torch.tanh(h))
    return m, lambda: setattr(m, "act", lambda m, h: torch.sin(h))


def norm_of_a_layer():
    m = Net(lambda m, h: m.norm(h), norm=nn.LayerNorm(4))
    return m, lambda: setattr(m.norm, "eps", 0.5)


CHANGES = [
    *(leaky, number, flag, string, none, listed, mapped, configured),
    *(tensor_replaced, tensor_written, tensor_written_past_its_version, tensor_in_a_list, array),
    *(named_tuple, keyed_by_objects),
    *(function, partial, hidden_module, forward_hook, forward_pre_hook, forward_hook_taken_away),
    *(own_forward, class_of_a_module, forward_of_the_class, dropped_bias, norm_of_a_layer),
]


def data():
    return torch.randn(N, I), torch.tensor([0, 1, 0, 1])


def answers(risk, v):
    E = risk.empirical_fisher()
    products = [risk.hessian() @ v, risk.ggn() @ v, risk.model_curvature() @ v]
    return [risk.gradient(), *products, E @ v, E.diagonal(), torch.tensor(risk.value())]


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("made", CHANGES, ids=lambda made: made.__name__)
def test_a_change_of_the_model_that_is_no_parameter_is_seen(made, cache):
    model, change = made()
    batch, loss = data(), nn.CrossEntropyLoss()
    risk = cx.EmpiricalRisk(model, loss, batch, cache=cache)
    v = torch.randn(risk.space.size)
    before = answers(risk, v)
    for a, b in zip(answers(risk, v), before, strict=True):
        assert torch.equal(a, b)
    change()
    now = answers(risk, v)
    fresh = answers(cx.EmpiricalRisk(model, loss, batch), v)
    for a, b, c in zip(now, fresh, before, strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize(
    "made", [number, leaky, tensor_written, tensor_replaced, own_forward, function]
)
def test_a_trace_is_made_anew_when_a_number_in_it_changes(made, cache):
    model, change = made()
    batch, loss = data(), nn.CrossEntropyLoss()
    risk = cx.EmpiricalRisk(model, loss, batch, cache=cache, compile="eager")
    v = torch.randn(risk.space.size)
    assert_close(risk.hessian() @ v, cx.EmpiricalRisk(model, loss, batch).hessian() @ v)
    change()
    fresh = cx.EmpiricalRisk(model, loss, batch)
    assert_close(risk.hessian() @ v, fresh.hessian() @ v)
    assert_close(risk.ggn() @ v, fresh.ggn() @ v)


def test_a_trace_outlives_a_step_of_the_parameters_of_any_layer():
    class Recurrent(nn.Module):  # an LSTM holds its parameters in a plain list too
        def __init__(self):
            super().__init__()
            self.r, self.h = nn.LSTM(I, 3, batch_first=True), nn.Linear(3, O)

        def forward(self, x):
            return self.h(self.r(x.unsqueeze(1))[0][:, -1])

    for model in (Recurrent(), nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O))):
        risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data(), compile="eager")
        v = torch.randn(risk.space.size)
        risk.ggn() @ v
        traces = dict(risk._compiler._traces)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
        risk.ggn() @ v
        assert traces and risk._compiler._traces == traces


class OwnLoss:
    reduction = "mean"

    def __init__(self, alpha):
        self.alpha = alpha

    def __call__(self, output, target):
        return self.alpha * F.cross_entropy(output, target)


def _captured():
    holder = [2.0]

    def loss(output, target):
        return factor * F.cross_entropy(output, target)

    factor = holder[0]

    def change():
        nonlocal factor
        factor = 3.0

    return loss, change


def _loss_cases():
    ce, bce, huber, own = (
        nn.CrossEntropyLoss(),
        nn.BCEWithLogitsLoss(),
        nn.HuberLoss(),
        OwnLoss(2.0),
    )
    causal = functools.partial(F.cross_entropy, label_smoothing=0.0)
    weighted = nn.CrossEntropyLoss(weight=torch.ones(O))
    total = nn.MSELoss()
    pos = nn.BCEWithLogitsLoss(pos_weight=torch.ones(O))
    closure, change_closure = _captured()
    return {
        "label_smoothing": (ce, lambda: setattr(ce, "label_smoothing", 0.3)),
        "weight": (ce, lambda: setattr(ce, "weight", torch.tensor([1.0, 3.0]))),
        "weight_written": (weighted, lambda: weighted.weight.data.mul_(torch.tensor([1.0, 3.0]))),
        "ignore_index": (ce, lambda: setattr(ce, "ignore_index", 1)),
        "reduction": (ce, lambda: setattr(ce, "reduction", "sum")),
        "mse_reduction": (total, lambda: setattr(total, "reduction", "sum")),
        "bce_weight": (bce, lambda: setattr(bce, "weight", torch.tensor([1.0, 3.0]))),
        "bce_pos_weight": (bce, lambda: setattr(bce, "pos_weight", torch.tensor([1.0, 3.0]))),
        "pos_weight_taken_away": (pos, lambda: pos.pos_weight.fill_(3.0)),
        "huber_delta": (huber, lambda: setattr(huber, "delta", 0.1)),
        "attribute_of_a_callable": (own, lambda: setattr(own, "alpha", 5.0)),
        "partial": (causal, lambda: causal.keywords.update(label_smoothing=0.4)),
        "closure": (closure, change_closure),
    }


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("name", _loss_cases())
def test_a_change_of_the_loss_is_seen(name, cache):
    loss, change = _loss_cases()[name]
    model, (x, y) = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), data()
    if isinstance(loss, (nn.BCEWithLogitsLoss, nn.HuberLoss, nn.MSELoss)):
        y = torch.rand(N, O)
    reduction = None if hasattr(loss, "reduction") else "mean"
    risk = cx.EmpiricalRisk(model, loss, (x, y), cache=cache, reduction=reduction)
    v = torch.randn(risk.space.size)
    before = answers(risk, v)
    change()
    now = answers(risk, v)
    fresh = answers(cx.EmpiricalRisk(model, loss, (x, y), reduction=reduction), v)
    for a, b in zip(now, fresh, strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(now[0], before[0])  # G may not change with the residual


def test_a_change_of_the_loss_is_seen_by_compiled_products():
    loss = nn.CrossEntropyLoss()
    model, batch = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), data()
    risk = cx.EmpiricalRisk(model, loss, batch, compile="eager")
    v = torch.randn(risk.space.size)
    risk.hessian() @ v
    loss.label_smoothing = 0.3
    assert_close(risk.hessian() @ v, cx.EmpiricalRisk(model, loss, batch).hessian() @ v)


# ---------------------------------------------------------------------- inputs that are written to


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"compile": "eager"}], ids=str)
@pytest.mark.parametrize(
    "writing",
    [
        lambda m, x: x.sub_(0.5),
        lambda m, x: x[:, 0].zero_().unsqueeze(1) + x,
        lambda m, x: F.relu(x, inplace=True),
        lambda m, x: torch.add(x, 1, out=x),
        lambda m, x: x.mul_(2).div_(2) + 0 * x.copy_(x + 1),
    ],
)
def test_a_forward_pass_that_writes_to_its_input_is_refused_and_the_data_put_back(writing, options):
    class Writing(nn.Linear):
        def forward(self, x):
            return super().forward(writing(self, x))

    batch = data()
    before = batch[0].clone()
    risk = cx.EmpiricalRisk(Writing(I, O), nn.CrossEntropyLoss(), batch, **options)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"writes to its input.*\[4, 3\].*clone\(\)"):
            risk.hessian() @ torch.randn(risk.space.size)
    assert torch.equal(batch[0], before)
    copied = cx.EmpiricalRisk(
        Writing(I, O), nn.CrossEntropyLoss(), batch, forward=lambda m, b: m(b[0].clone())
    )
    v = torch.randn(risk.space.size)
    assert torch.equal(copied.ggn() @ v, copied.ggn() @ v)


def test_mappings_are_looked_at_for_writing_too():
    class Writing(nn.Linear):
        def forward(self, input_ids):
            return super().forward(input_ids.add_(1))

    x, y = data()
    risk = cx.EmpiricalRisk(Writing(I, O), nn.CrossEntropyLoss(), {"input_ids": x, "labels": y})
    with pytest.raises(RuntimeError, match="writes to its input"):
        risk.gradient()


# ---------------------------------------------------------------------- hidden states


class Hidden(nn.Module):
    """Mixes what the call before left behind into its output."""

    def __init__(self, start, keep):
        super().__init__()
        self.a, self.b, self.h, self.keep = nn.Linear(I, 4), nn.Linear(4, O), start, keep

    def forward(self, x):
        h = torch.tanh(self.a(x) + _value(self.h))
        self.keep(self, h)
        return self.b(h)


def _value(h):
    while isinstance(h, (list, dict, deque)):
        h = (list(h.values()) if isinstance(h, dict) else h)[-1] if h else 0.0
    return 0.0 if h is None else h


STATES = {
    "tensor": lambda: Hidden(torch.zeros(4), lambda m, h: setattr(m, "h", h.detach().mean(0))),
    "tensor_with_graph": lambda: Hidden(None, lambda m, h: setattr(m, "h", h.mean(0))),
    "written": lambda: Hidden(torch.zeros(4), lambda m, h: m.h.copy_(h.detach().mean(0))),
    "number": lambda: Hidden(0.0, lambda m, h: setattr(m, "h", m.h + 0.5)),
    "deque": lambda: Hidden(deque(maxlen=2), lambda m, h: m.h.append(h.detach().mean(0))),
    "list": lambda: Hidden([], lambda m, h: m.h.append(h.detach().mean(0))),
    "dict": lambda: Hidden({}, lambda m, h: m.h.update(h=h.detach().mean(0))),
}


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("name", STATES)
def test_a_state_in_an_attribute_is_refused_by_name_and_put_back(name, cache):
    model = STATES[name]()
    held = model.h.clone() if isinstance(model.h, torch.Tensor) else model.h
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data(), cache=cache)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="keeps a state in the attribute 'h'.*forward="):
            risk.gradient()
    assert not isinstance(held, torch.Tensor) or torch.equal(model.h, held)
    assert isinstance(held, torch.Tensor) or model.h == held


class Recording(nn.Module):
    """Keeps what it has seen, and never reads it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(I, 4), nn.Linear(4, O)
        self.last, self.all, self.calls = None, [], 0

    def forward(self, x):
        h = torch.tanh(self.a(x))
        self.last, self.calls = h, self.calls + 1
        self.all.append(h)
        self.new = h
        return self.b(h)


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"compile": "eager"}], ids=str)
def test_a_record_that_the_model_never_reads_is_allowed_and_left_as_found(options):
    model, batch = Recording(), data()
    plain = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O))
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, **options)
    truth = cx.EmpiricalRisk(plain, nn.CrossEntropyLoss(), batch)
    v = torch.randn(risk.space.size)
    for _ in range(2):
        assert_close(risk.ggn() @ v, truth.ggn() @ v)
        assert_close(risk.hessian() @ v, truth.hessian() @ v)
        assert_close(risk.empirical_fisher() @ v, truth.empirical_fisher() @ v)
        assert (model.last, model.all, model.calls) == (None, [], 0) and not hasattr(model, "new")
        assert torch.equal(risk.ggn() @ v, risk.ggn() @ v)
    model(batch[0])  # the user's own call records as ever
    assert model.calls == 1 and len(model.all) == 1
    assert_close(risk.ggn() @ v, truth.ggn() @ v)
    assert model.calls == 1 and model.last is model.all[0]


class Remembering(nn.Module):
    """Computes a weight once and remembers it with its graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.product = nn.Linear(I, 4), nn.Linear(4, O), None

    def forward(self, x):
        if self.product is None:
            self.product = self.b.weight @ self.a.weight
        return torch.tanh(x @ self.product.T)


@pytest.mark.parametrize("cache", ["auto", False])
def test_what_a_model_remembers_with_its_graph_is_made_anew_or_refused(cache):
    model, batch = Remembering(), data()
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, cache=cache)
    v = torch.randn(risk.space.size)
    for _ in range(2):
        risk.gradient(), risk.hessian() @ v, risk.ggn() @ v
    assert model.product is None
    first = risk.ggn() @ v
    with torch.no_grad():
        model.a.weight.mul_(0.5)
    assert not torch.allclose(risk.ggn() @ v, first)
    model(batch[0])
    with pytest.raises(RuntimeError, match="an earlier call left in an attribute with its graph"):
        risk.gradient()


def test_cached_parametrisations_are_set_aside():
    model, batch = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), data()
    nn.utils.parametrizations.weight_norm(model[0])
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, cache=False)
    v = torch.randn(risk.space.size)
    expected = [risk.hessian() @ v, risk.ggn() @ v, risk.gradient()]
    with nn.utils.parametrize.cached():
        model(batch[0])
        found = [risk.hessian() @ v, risk.ggn() @ v, risk.gradient()]
        assert nn.utils.parametrize._cache_enabled
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_model_that_looks_at_requires_grad_is_refused_where_params_would_change_it():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(I, 4), nn.Linear(4, O)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h if self.a.weight.requires_grad else 2 * h)

    model, batch = Looking(), data()
    with pytest.raises(RuntimeError, match="params: the model gives another output"):
        cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, params="b.*").value()
    cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch).value()
    model.a.requires_grad_(False)
    cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch).value()


@pytest.mark.parametrize("cache", ["auto", False])
def test_a_value_is_that_of_the_parameters_as_they_are(cache):
    posed = pose("mlp")
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data, cache=cache)
    before = risk.value()
    assert risk.value() == before
    with torch.no_grad():
        next(posed.model.parameters()).mul_(1.5)
    fresh = cx.EmpiricalRisk(posed.model, posed.loss, posed.data).value()
    assert risk.value() == fresh != before


def test_a_refused_change_is_refused_again_and_its_undoing_is_seen():
    posed = pose("mlp")
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    H = risk.hessian()
    v = torch.ones(H.size, dtype=H.dtype)
    before = H @ v
    p = next(posed.model.parameters())
    kept = p.detach().clone()
    with torch.no_grad():
        p.view(-1)[0] = float("nan")
    for _ in range(2):
        with pytest.raises(ValueError, match="params: .* contains nan or inf"):
            H @ v
    with torch.no_grad():
        p.copy_(kept)
    assert torch.equal(H @ v, before)
