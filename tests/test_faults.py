"""Inputs that people use, each with its right value by plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import Oracle, twice_differentiable
from torch import nn

import curvext as cx

N, I, O = 4, 3, 2


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def labelled():
    return torch.randn(N, I), torch.tensor([0, 1, 0, 1])


def assert_everything(model, loss, x, y, oracle=None, *, hessian=True, tol=None, **options):
    """Every quantity of a risk of one batch agrees with the dense truth."""
    oracle = Oracle(model, loss, x, y) if oracle is None else oracle
    risk = cx.EmpiricalRisk(model, loss, (x, y), **options)
    V = torch.randn(oracle.size, 2)
    G, g = oracle.ggn(), oracle.sample_gradients()
    size = float((G @ V).abs().max())
    assert_close(risk.gradient(), oracle.gradient(), "gradient", tol)
    assert_close(risk.ggn() @ V, G @ V, "G v", tol)
    assert_close(risk.ggn().diagonal(), G.diagonal(), "diagonal of G", tol)
    assert_close(risk.empirical_fisher() @ V, g.T @ (g @ V) / len(g), "F_emp v", tol)
    assert_close(risk.empirical_fisher().diagonal(), g.square().mean(0), "diagonal of F_emp", tol)
    assert_close(risk.empirical_fisher().gradient_norms(), g.norm(dim=1), "norms", tol)
    if hessian:
        H = oracle.hvp(V)
        assert_close(risk.hessian() @ V, H, "H v", tol, scale=size)
        assert_close(risk.model_curvature() @ V, H - G @ V, "R v", tol, scale=size)


# ---------------------------------------------------------------------- logcumsumexp


class Cumulated(nn.Module):
    def __init__(self, dim=1, shift=0.0):
        super().__init__()
        self.a, self.b, self.dim, self.shift = nn.Linear(I, 6), nn.Linear(6, O), dim, shift

    def forward(self, x):
        h = self.a(x).view(len(x), 2, 3) * torch.tensor([1.0, -1.0]).view(2, 1) + self.shift
        method = h.logcumsumexp(self.dim) if self.dim > 0 else torch.logcumsumexp(h, dim=self.dim)
        return self.b((method - self.shift).flatten(1))


@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.parametrize("shift", [0.0, 900.0, -900.0])
def test_logcumsumexp_has_tangents_and_second_derivatives(dim, shift):
    model = Cumulated(dim, shift)
    x, y = labelled()

    class Plain(Cumulated):  # Σ_j over a mask, by the definition
        def forward(self, x):
            h = self.a(x).view(len(x), 2, 3) * torch.tensor([1.0, -1.0]).view(2, 1) + self.shift
            h = h.movedim(self.dim, -1)
            later = torch.ones(h.shape[-1], h.shape[-1]).triu(1).bool()
            y = h.unsqueeze(-2).masked_fill(later, -torch.inf).logsumexp(-1)
            return self.b((y.movedim(-1, self.dim) - self.shift).flatten(1))

    plain = Plain(dim, shift)
    plain.load_state_dict(model.state_dict())
    loss = nn.CrossEntropyLoss()
    oracle = Oracle(plain, loss, x, y)
    assert_close(model(x), plain(x), tol=1e-12)
    assert_everything(model, loss, x, y, oracle)


@pytest.mark.parametrize("quantity", ["ggn", "hessian"])
def test_a_product_that_is_nan_raises(quantity):
    class Rooted(nn.Linear):
        def forward(self, x):
            return (super().forward(x) ** 2).sqrt()

    model = Rooted(I, O)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, _ = labelled()
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (x, torch.ones(N, O)))
    v = torch.randn(risk.space.size)
    with pytest.raises(ValueError, match="contains nan or inf, though parameters"):
        getattr(risk, quantity)() @ v
    with pytest.raises(ValueError, match="contains nan or inf"):
        getattr(risk, quantity)() @ v[:, None]


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: r.gradient(),
        lambda r: r.ggn().diagonal(),
        lambda r: r.empirical_fisher().diagonal(),
        lambda r: r.empirical_fisher().gradient_norms(),
        lambda r: r.empirical_fisher().trace(),
        lambda r: r.empirical_fisher().gram(),
    ],
)
def test_a_gradient_that_is_nan_raises_in_every_quantity(answer):
    class Norm(nn.Linear):
        def forward(self, x):
            return (super().forward(x) ** 2).sqrt()

    model = Norm(I, O)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (torch.randn(N, I), torch.ones(N, O)))
    with pytest.raises(ValueError, match="contains nan or inf, though"):
        answer(risk)


# ---------------------------------------------------------------------- grouped-query attention


class Grouped(nn.Module):
    """Four heads of queries, ``heads`` of keys and values."""

    def __init__(self, heads=2, **options):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(I, 8), nn.Linear(I, 2 * heads), nn.Linear(I, 2 * heads)
        self.out = nn.Linear(8, O)
        self.heads, self.options = heads, options

    def forward(self, x):
        def split(t, heads):
            return t.unflatten(2, (heads, 2)).transpose(1, 2)

        y = F.scaled_dot_product_attention(
            split(self.q(x), 4),
            split(self.k(x), self.heads),
            split(self.v(x), self.heads),
            enable_gqa=True,
            **self.options,
        )
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tensor([[True, False, True, True, False]])},
        {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
    ],
    ids=["plain", "causal", "scale", "mask", "bias"],
)
def test_heads_in_groups_leave_every_quantity_exact(heads, options):
    model = Grouped(heads, **options)
    x, y = torch.randn(N, 5, I), torch.tensor([0, 1, 0, 1])
    with twice_differentiable():
        oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    assert_everything(model, nn.CrossEntropyLoss(), x, y, oracle)


def test_heads_in_groups_are_compiled_like_others():
    model = Grouped()
    x, y = torch.randn(N, 5, I), torch.tensor([0, 1, 0, 1])
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    compiled = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), compile="eager")
    v = torch.randn(risk.space.size)
    assert_close(compiled.hessian() @ v, risk.hessian() @ v)
    assert_close(compiled.ggn() @ v, risk.ggn() @ v)


# ---------------------------------------------------------------------- empty side tensors


def _with_edges(m, b):
    return m(b["x"]) + b["edges"].sum()


def test_an_empty_side_tensor_does_not_make_a_batch_empty():
    model, (x, y) = nn.Linear(I, O), labelled()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    batch = {"x": x, "edges": torch.zeros(0, 2), "labels": y}
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batch, forward=_with_edges)
    v = torch.randn(oracle.size)
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.ggn() @ v, oracle.ggn() @ v)
    assert_close(risk.empirical_fisher().gradient_norms(), oracle.sample_gradients().norm(dim=1))


def test_a_batch_whose_target_is_empty_is_skipped_whatever_else_it_holds():
    model, (x, y) = nn.Linear(I, O), labelled()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    full = {"x": x, "edges": torch.zeros(0, 2), "labels": y}
    none = {"x": x[:0], "edges": torch.zeros(5, 2), "labels": y[:0]}
    bare = {"x": x[:0], "edges": torch.zeros(0, 2), "labels": y[:0]}
    for batches in ([none, full, bare], [full, none]):
        risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, forward=_with_edges)
        assert_close(risk.gradient(), oracle.gradient())
    with pytest.raises(ValueError, match="no batch has a sample"):
        cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), [none, bare], forward=_with_edges).gradient()


def test_empty_tensors_beside_x_in_a_pair_and_targets_of_ones_own():
    model, (x, y) = nn.Linear(I, O), labelled()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, y)
    risk = cx.EmpiricalRisk(
        model,
        nn.CrossEntropyLoss(),
        [((x, torch.zeros(0)), y), ((x[:0], torch.zeros(3)), y[:0])],
        forward=lambda m, b: m(b[0][0]),
    )
    assert_close(risk.gradient(), oracle.gradient())
    odd = cx.EmpiricalRisk(
        model,
        lambda f, t: F.cross_entropy(f, y),
        [(x, {"boxes": torch.zeros(0, 4)})],
        target=lambda b: None,
        reduction="mean",
    )
    assert_close(odd.gradient(), oracle.gradient())


# ---------------------------------------------------------------------- named vectors


def test_a_named_vector_of_mixed_dtypes_is_refused_by_name():
    model = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O))
    G = cx.GGNOperator(model, nn.CrossEntropyLoss(), labelled())
    good = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for error in (TypeError, ValueError):
        with pytest.raises(
            error, match="'0.weight': expected dtype torch.float64, got torch.float32"
        ):
            G @ {**good, "0.weight": good["0.weight"].float()}
    with pytest.raises(TypeError, match="expected dtype torch.float64, got torch.float32"):
        G @ {name: v.float() for name, v in good.items()}
    with pytest.raises(
        ValueError, match="'2.bias': expected dtype torch.float64, got torch.complex128"
    ):
        G @ {**good, "2.bias": good["2.bias"] + 0j}
    with pytest.raises(ValueError, match="'2.bias': expected device cpu, got meta"):
        G @ {**good, "2.bias": good["2.bias"].to("meta")}


# ---------------------------------------------------------------------- default device


@pytest.mark.parametrize("loss", ["ce", "bce", "mse", "custom"])
def test_a_default_device_of_another_kind_changes_nothing(loss):
    """``meta`` stands for ``cuda``: whatever is made there cannot meet what the answer is made of."""
    model = nn.Sequential(nn.Linear(I, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, O))
    x, y = labelled()
    losses = {
        "ce": (nn.CrossEntropyLoss(label_smoothing=0.1), y),
        "bce": (nn.BCEWithLogitsLoss(), torch.rand(N, O)),
        "mse": (nn.MSELoss(), torch.randn(N, O)),
        "custom": (nn.SmoothL1Loss(), torch.randn(N, O)),
    }
    loss, y = losses[loss]
    v = torch.randn(sum(p.numel() for p in model.parameters()))

    def answers():
        risk = cx.EmpiricalRisk(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
        E, G, H = risk.empirical_fisher(), risk.ggn(), risk.hessian()
        found = [risk.gradient(), G @ v, G @ v, H @ v, risk.model_curvature() @ v, E @ v]
        found += [G.diagonal(), E.diagonal(), E.gradient_norms(), E.gram(), E.trace()]
        found += [E.solve(v), E.eigh(2).values, G.to_dense(), (G + cx.Identity(len(v))).diagonal()]
        if not isinstance(loss, nn.SmoothL1Loss):
            found += [risk.mc_fisher() @ v, risk.fisher() @ v]
        for method in ("hutchinson", "hutch++", "xtrace"):
            found.append(cx.trace(G, method=method, probes=12).value)
        found.append(cx.cg(G + cx.Identity(len(v)), v).x)
        block = cx.cg(G + cx.Identity(len(v)), torch.stack([v, 2 * v], 1))
        str(block)
        found += [block.x, cx.eigsh(G, 2).values, cx.diagonal(G, probes=4).value]
        found += [cx.spectral_density(G, probes=2, steps=5).density]
        cx.critical_point(risk), risk.explain()
        return found

    expected = answers()
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        found = answers()
    finally:
        torch.set_default_device(before)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------- losses that read the parameters


class Penalised(nn.Module):
    """A loss module that shares the network's modules."""

    def __init__(self, network, strength=0.5):
        super().__init__()
        self.network, self.strength, self.reduction = network, strength, "mean"

    def forward(self, output, target):
        penalty = sum(p.square().sum() for p in self.network.parameters())
        return F.cross_entropy(output, target) + self.strength * penalty


def _reading(name, m, x):
    return {
        "a closure": lambda o, t: F.cross_entropy(o, t) + 0.5 * m[0].weight.square().sum(),
        "a norm": lambda o, t: F.cross_entropy(o, t) + m[0].weight.norm(),
        "the model": lambda o, t: F.cross_entropy(o, t) + m(x).square().mean(),
        "a residual": lambda o, t: F.mse_loss(o @ m[2].weight, torch.ones(N, 4)),
        "in place": lambda o, t: o.mul_(m[2].bias).square().sum(),
        "a module": Penalised(m),
    }[name]


@pytest.mark.parametrize("quantity", ["value", "gradient", "hessian", "ggn", "empirical_fisher"])
@pytest.mark.parametrize(
    "name", ["a closure", "a norm", "the model", "a residual", "in place", "a module"]
)
def test_a_loss_that_reads_the_parameters_is_refused_with_the_way_out(name, quantity):
    model, (x, y) = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), labelled()
    risk = cx.EmpiricalRisk(model, _reading(name, model, x), (x, y), reduction="mean")
    with pytest.raises(
        ValueError, match=r"loss: it reads the parameters '.*weight'.*Identity|bias"
    ):
        answer = getattr(risk, quantity)()
        if quantity not in ("value", "gradient"):
            answer @ torch.randn(risk.space.size)


def test_a_loss_may_read_what_is_not_differentiated():
    model, (x, y) = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), labelled()
    own = nn.Parameter(torch.tensor(2.0))
    first = model[0].weight

    def loss(o, t):
        return own * F.cross_entropy(o, t) + first.square().sum() + 0 * model[2].bias.detach().sum()

    oracle = Oracle(model, loss, x, y, params=["2.weight", "2.bias"])
    risk = cx.EmpiricalRisk(model, loss, (x, y), params="2.*", reduction="mean")
    v = torch.randn(oracle.size)
    assert_close(risk.hessian() @ v, oracle.hvp(v[:, None])[:, 0])
    assert_close(risk.gradient(), oracle.gradient())
    assert own.grad is None and own.requires_grad


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.BCEWithLogitsLoss])
def test_weights_of_a_loss_that_are_trained_are_refused(loss):
    class Weighted(nn.Linear):
        def __init__(self):
            super().__init__(I, O)
            self.scale = nn.Parameter(torch.ones(O))

    model, (x, y) = Weighted(), labelled()
    for weight in (model.scale, model.scale.exp()):
        with pytest.raises(
            ValueError, match="loss: its weight is, or is made of, the parameters 'scale'"
        ):
            cx.EmpiricalRisk(model, loss(weight=weight), (x, y))
        cx.EmpiricalRisk(model, loss(weight=weight.detach()), (x, y))


def test_a_criterion_inside_the_model_with_parameters_of_its_own_is_refused():
    class Temperature(nn.Module):
        reduction = "mean"

        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor(0.3))

        def forward(self, output, target):
            return F.cross_entropy(output * self.log_scale.exp(), target)

    class WithCriterion(nn.Linear):
        def __init__(self):
            super().__init__(I, O)
            self.criterion = Temperature()

    model, (x, y) = WithCriterion(), labelled()
    with pytest.raises(ValueError, match="loss: it reads the parameters 'criterion.log_scale'"):
        cx.EmpiricalRisk(model, model.criterion, (x, y)).gradient()
    oracle = Oracle(model, model.criterion, x, y, params=["weight", "bias"])
    risk = cx.EmpiricalRisk(model, model.criterion, (x, y), params=["weight", "bias"])
    assert_close(risk.gradient(), oracle.gradient())


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_a_target_made_of_the_parameters_is_refused(loss):
    model, (x, _) = nn.Linear(I, O), labelled()
    for data, target in [((x, model(x)), None), ((x, x), lambda b: model(b[1]).square())]:
        risk = cx.EmpiricalRisk(model, loss, data, target=target)
        with pytest.raises(
            ValueError, match="data: the target depends on the parameters 'weight', 'bias'"
        ):
            risk.gradient()
    cx.EmpiricalRisk(model, loss, (x, model(x).detach())).gradient()


# ---------------------------------------------------------------------- losses


def test_a_loss_may_write_to_the_output_as_in_training():
    def plain(o, t):
        return F.cross_entropy(o / 2, t)

    def writing(o, t):
        return F.cross_entropy(o.div_(2), t)

    model, (x, y) = nn.Sequential(nn.Linear(I, 4), nn.Tanh(), nn.Linear(4, O)), labelled()
    oracle = Oracle(model, plain, x, y)
    risk = cx.EmpiricalRisk(model, writing, (x, y), reduction="mean")
    V = torch.randn(oracle.size, 2)
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.value() * torch.ones(1), oracle.value() * torch.ones(1))


def test_a_loss_that_writes_to_its_target_is_refused():
    model, (x, _) = nn.Linear(I, O), labelled()
    risk = cx.EmpiricalRisk(
        model, lambda o, t: (o - t.sub_(1)).square().mean(), (x, torch.ones(N, O)), reduction="mean"
    )
    with pytest.raises(ValueError, match=r"loss: it writes to its target.*target.clone\(\)"):
        risk.gradient()


def test_kl_divergence_by_batchmean_is_a_mean_over_samples():
    class LogSoftmax(nn.Linear):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    model, (x, _) = LogSoftmax(I, O), labelled()
    y = torch.rand(N, O).softmax(1)
    loss = nn.KLDivLoss(reduction="batchmean")
    oracle = Oracle(model, loss, x, y)
    V = torch.randn(oracle.size, 2)
    for data in ((x, y), [(x[:1], y[:1]), (x[1:], y[1:])]):
        risk = cx.EmpiricalRisk(model, loss, data)
        assert_close(risk.hessian() @ V, oracle.hvp(V))
        assert_close(risk.gradient(), oracle.gradient())


@pytest.mark.parametrize(
    "loss", [lambda o, t: (o.argmax(1) != t).double().mean() + 1, lambda o, t: o.detach().sum()]
)
def test_a_loss_without_derivative_is_refused(loss):
    risk = cx.EmpiricalRisk(nn.Linear(I, O), loss, labelled(), reduction="mean")
    with pytest.raises(ValueError, match="loss: nothing leads from its value to the output"):
        risk.gradient()


# ---------------------------------------------------------------------- refusals that name the way out


@pytest.mark.parametrize(
    "cut",
    [
        lambda m, x: m.last(x).detach(),
        lambda m, x: torch.from_numpy(m.last(x).detach().numpy()),
        torch.no_grad()(lambda m, x: m.last(x)),
    ],
    ids=["detach", "numpy", "no_grad"],
)
def test_an_output_without_graph_is_refused_and_not_answered_by_zeros(cut):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(I, O)

        def forward(self, x):
            return cut(self, x)

    for params in (None, "last.bias"):
        risk = cx.EmpiricalRisk(Cut(), nn.CrossEntropyLoss(), labelled(), params=params)
        for answer in (risk.gradient, lambda r=risk: r.ggn() @ torch.ones(r.space.size)):
            with pytest.raises(
                RuntimeError, match="nothing leads from the output to any parameter"
            ):
                answer()


def test_selected_parameters_that_nothing_reaches_get_zeros():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(I, O)
            self.idle = nn.Parameter(torch.ones(2))

    risk = cx.EmpiricalRisk(Idle(), nn.CrossEntropyLoss(), labelled(), params="idle")
    assert torch.equal(risk.gradient(), torch.zeros(2))
    assert torch.equal(risk.hessian() @ torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize("activation", [nn.Hardsigmoid(), nn.Hardswish()])
def test_hard_activations_have_second_derivatives(activation):
    model, (x, y) = nn.Sequential(nn.Linear(I, 6), activation, nn.Linear(6, O)), labelled()
    composed = nn.Sequential(nn.Linear(I, 6), nn.Identity(), nn.Linear(6, O))
    composed.load_state_dict(model.state_dict())
    swish = isinstance(activation, nn.Hardswish)
    composed[1].forward = lambda h: (h if swish else 1) * F.relu6(h + 3) / 6
    oracle = Oracle(composed, nn.CrossEntropyLoss(), x, y)
    # PyTorch's constants of hardsigmoid are of single precision
    assert_everything(model, nn.CrossEntropyLoss(), x, y, oracle, tol=1e-10 if swish else 1e-6)


def test_refusals_name_the_way_out():
    x, y = labelled()
    ce, model = nn.CrossEntropyLoss(), nn.Linear(I, O)

    def refused(error, words, model=model, loss=ce, data=(x, y), **options):
        with pytest.raises(error, match=words):
            cx.EmpiricalRisk(model, loss, data, **options).gradient()

    tokens = torch.randn(N, 5, I), torch.randint(O, (N, 5))
    refused(ValueError, r"CausalLMLoss.*shifts.*not shifted.*transpose\(1, 2\)", data=tokens)
    hidden = dict(forward=lambda m, b: m(b[0]).masked_fill(torch.tensor([True, False]), -torch.inf))
    refused(ValueError, "-1e9 in place of -inf", data=(x, torch.ones_like(y)), **hidden)
    refused(ValueError, "boolean, or have torch.finfo", data=((x, torch.full((2,), -torch.inf)), y))
    refused(
        ValueError, "missing labels", loss=nn.MSELoss(), data=(x, torch.full((N, O), torch.nan))
    )
    refused(
        TypeError, "DataLoader", data=[(x[0], 1), (x[1], 0)], forward=lambda m, b: m(b[0][None])
    )
    single = [(x[:1], torch.tensor(1))]
    refused(ValueError, "DataLoader", data=single)

    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(I, O)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    refused(RuntimeError, "'calls'.*call model.eval()", model=Counting())
    refused(RuntimeError, "'calls'.*if self.training", model=Counting().eval())
    with torch.inference_mode():
        inferred = nn.Linear(I, O)
    refused(ValueError, "'weight' was made in torch.inference_mode.*copy.deepcopy", model=inferred)
    dataset = torch.utils.data.TensorDataset(x, y)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, sampler=sampler)
    risk = cx.EmpiricalRisk(model, ce, loader)
    with pytest.raises(ValueError, match="sampling with replacement"):
        for seed in range(5):
            torch.manual_seed(seed)
            risk.gradient()
