"""The model is left as found, and what makes its risk ill-defined is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from ability import needs_plain
from answers import assert_all_close, assert_same, everything, risk_of
from compare import assert_close
from models import Model
from oracles import Oracle
from problems import pose
from torch import nn
from torch.utils.checkpoint import checkpoint

import curvext as cx
from curvext.gradients import convolution, outer_product


@pytest.fixture
def posed(device):
    return pose("cnn", "ce", device=device)


# ---------------------------------------------------------------------- the model is left as found


def snapshot(model):
    def copied(t):
        return None if t is None else t.detach().clone()

    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {n: copied(t) for n, t in tensors},
        "grads": {n: copied(p.grad) for n, p in model.named_parameters()},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "ids": {n: id(t) for n, t in tensors},
        "versions": {n: t._version for n, t in tensors},
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "parameter_hooks": {n: list(p._backward_hooks or ()) for n, p in model.named_parameters()},
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic),
        "sdp": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ),
    }


def assert_as_found(before, after):
    assert before.keys() == after.keys()
    for key, old in before.items():
        new = after[key]
        if key in ("values", "grads"):
            for name, t in old.items():
                same = new[name] is None if t is None else torch.equal(t, new[name])
                assert same, f"{key} of {name} changed"
        elif key == "rng":
            assert torch.equal(old, new), "the generator moved"
        else:
            assert old == new, f"{key} changed"


def lived_in(name, device):
    """A model with grads, a frozen parameter and hooks of the user's."""
    posed = pose(name, device=device)
    posed.oracle.value()
    posed.loss(Oracle(posed.model, posed.loss, posed.x, posed.y).output, posed.y).backward()
    parameters = list(posed.model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].register_hook(lambda g: g * 100)
    posed.model.register_forward_hook(lambda *_: None)
    return posed


@pytest.mark.parametrize(
    "name", ["cnn", "encoder_layer", "lstm", "weight_norm", "bilinear", "tied", "spectral_norm"]
)
def test_the_model_is_left_as_found(name, device):
    posed = lived_in(name, device)
    before = snapshot(posed.model)
    names = [name for name, _ in posed.model.named_parameters()]
    # the frozen first one is asked for, a trainable one is not
    risk = risk_of(posed, params=lambda name, p: name != names[-1])
    V = torch.randn(risk.space.size, 1).to(posed.oracle.output)
    before["rng"] = torch.get_rng_state()
    everything(risk, V)
    risk.explain()
    assert_as_found(before, snapshot(posed.model))


def test_convolutions_are_asked_for_the_same_bits_each_time(device):
    posed = pose("cnn", device=device)
    seen = []
    posed.model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.deterministic))
    risk_of(posed).gradient()
    assert seen and all(seen) and not torch.backends.cudnn.deterministic


def test_a_default_device_of_the_user_is_not_where_the_library_computes():
    """As with ``torch.set_default_device("cuda")``; a tensor made without a device would hold nothing here."""
    posed = pose("tied", device="cpu")
    V = posed.vectors()
    G = risk_of(posed).ggn()

    def answers():
        options = {"seed": 1}
        yield from everything(risk_of(posed), V)
        yield cx.eigsh(G, 2, **options).values
        yield cx.eigsh(G, 2, "BE", ncv=8, **options).values
        yield cx.cg(G, V[:, 0], damping=0.1).x
        yield cx.trace(G, probes=4, **options).value
        yield cx.diagonal(G, probes=4, **options).value
        yield cx.spectral_density(G, probes=2, steps=3, **options).density
        yield risk_of(posed).mc_fisher(seed=3) @ V

    here = list(answers())
    with torch.device("meta"):
        there = list(answers())
    assert_same(here, there)


def test_hooks_of_the_user_do_not_change_the_answer(device):
    plain = pose("mlp", device=device)
    hooked = pose("mlp", device=device)
    for p in hooked.model.parameters():
        p.register_hook(lambda g: g * 100)
    V = plain.vectors()
    assert_same(everything(risk_of(hooked), V), everything(risk_of(plain), V))


class Stumbling(nn.Module):
    """Fails in its n-th forward pass."""

    def __init__(self, model, at):
        super().__init__()
        self.model, self.at, self.count = model, at, 0

    def forward(self, x):
        self.count += 1
        y = self.model(x)
        if self.count == self.at:
            raise KeyboardInterrupt
        return y


@pytest.mark.parametrize("at", [1, 2])
def test_the_model_is_left_as_found_after_an_error_in_its_forward_pass(at, device):
    posed = lived_in("cnn", device)
    model = Stumbling(posed.model, at)
    before = snapshot(posed.model)
    everything_asked = cx.EmpiricalRisk(model, posed.loss, posed.cut(2, 3), params="*")
    with pytest.raises(KeyboardInterrupt):
        everything_asked.gradient()
    assert_as_found(before, snapshot(posed.model))
    model.at = None
    risk = cx.EmpiricalRisk(model, posed.loss, posed.cut(2, 3))
    unhooked = pose("cnn", device=device)
    next(unhooked.model.parameters()).requires_grad_(False)
    assert_close(
        risk.gradient(), Oracle(unhooked.model, unhooked.loss, unhooked.x, unhooked.y).gradient()
    )


def test_the_model_is_left_as_found_after_an_error_in_the_loss(device):
    posed = lived_in("cnn", device)
    before = snapshot(posed.model)

    def loss(f, y):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cx.EmpiricalRisk(posed.model, loss, posed.data, reduction="sum").gradient()
    assert_as_found(before, snapshot(posed.model))


@pytest.mark.parametrize("allocation", [1, 2, 4])
@pytest.mark.parametrize("name", ["cnn", "encoder_layer", "tied"])
def test_a_failed_allocation_leaves_the_model_as_found_and_the_risk_usable(
    name, allocation, device, monkeypatch
):
    posed = lived_in(name, device)
    before = snapshot(posed.model)
    risk = risk_of(posed, posed.cut(2, 3))
    v = posed.vectors()[: risk.space.size, 0].contiguous()

    def quantities():
        E = risk.empirical_fisher()
        return [E.diagonal(), E.gradient_norms(), E @ v, risk.ggn() @ v]

    class Exhausted:
        """Stands for a kernel's memory running out at its n-th call."""

        count = 0

        def __call__(self, *args):
            Exhausted.count += 1
            if Exhausted.count == allocation:
                raise torch.OutOfMemoryError("planted: not enough memory")
            return self.kernel(*args)

        def __init__(self, kernel):
            self.kernel = kernel

    with monkeypatch.context() as planted:
        for kernel in ("outer_square", "outer_norm", "outer_dot", "outer_sum"):
            for user in (outer_product, convolution):
                if hasattr(user, kernel):
                    planted.setattr(user, kernel, Exhausted(getattr(user, kernel)))
        with pytest.raises(torch.OutOfMemoryError, match="planted"):
            quantities()
    assert_as_found(before, snapshot(posed.model))
    again = risk_of(posed, posed.cut(2, 3))
    E = again.empirical_fisher()
    expected = [E.diagonal(), E.gradient_norms(), E @ v, again.ggn() @ v]
    for got, want in zip(quantities(), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "counted",
    [lambda s: s.count.add_(1), lambda s: setattr(s, "count", s.count + 1) or s.count],
    ids=["written", "replaced"],
)
def test_a_forward_pass_that_changes_a_buffer_is_refused_and_undone(counted):
    model = Model(lambda s, x: s.a(x) + 0 * counted(s), a=nn.Linear(4, 3))
    model.register_buffer("count", torch.zeros(()))
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    with pytest.raises(RuntimeError, match="writes to the buffer 'count'"):
        cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)).gradient()
    assert model.count == 0


def test_the_answer_is_that_of_a_model_under_no_grad_and_inference_mode(posed):
    V = posed.vectors()
    expected = everything(risk_of(posed), V)
    with torch.no_grad():
        assert_same(everything(risk_of(posed), V), expected)
    with torch.inference_mode():
        got = everything(risk_of(posed), V)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def autocast_call(model, batch):
    x = batch[0]
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


def all_products(risk, V):
    estimates = [risk.fisher() @ V, risk.mc_fisher() @ V, risk.ggn().diagonal()]
    return [*everything(risk, V), *estimates, risk.empirical_fisher().solve(V[:, 0])]


@pytest.mark.parametrize("name, options", [("mlp", {"cache": False}), ("cnn", {})], ids=str)
def test_autocast_of_the_caller_is_for_the_model_alone(name, options, device):
    """Inside it every answer is that of a model which has autocast inside; before and after, that of one without."""
    posed = pose(name, "ce", device=device, dtype=torch.float32)
    needs_plain(
        f"{name} under autocast", posed.model, lambda: autocast_call(posed.model, posed.data)
    )
    V = posed.vectors()
    expected = all_products(risk_of(posed, forward=autocast_call, **options), V)
    outside = risk_of(posed, **options)
    before = all_products(outside, V)
    with torch.autocast(device.type, torch.bfloat16):
        assert_same(all_products(risk_of(posed, **options), V), expected)
        # weights that were cast before, without a graph or at other values, are not taken
        with torch.no_grad():
            posed.model(posed.x)
            for p in posed.model.parameters():
                p.mul_(2)
        changed = everything(risk_of(posed, **options), V)
        with torch.no_grad():
            for p in posed.model.parameters():
                p.div_(2)
        assert not torch.equal(changed[0], expected[0])
        assert_same(all_products(risk_of(posed, **options), V), expected)
        assert torch.is_autocast_enabled(device.type)
    assert_same(all_products(risk_of(posed, **options), V), before)


def test_a_kept_linearisation_is_multiplied_without_the_caller_s_autocast(device):
    posed = pose("mlp", "ce", device=device, dtype=torch.float32)
    V = posed.vectors()
    risk = risk_of(posed)
    risk.hessian() @ V
    G = risk_of(posed).ggn() @ V
    with torch.autocast(device.type, torch.bfloat16):
        assert_close(risk.ggn() @ V, G, tol=0.05)
    assert_close(risk.ggn() @ V, G)


def test_a_training_step_works_after_products_were_asked_for(posed):
    risk = risk_of(posed, cache=True)
    everything(risk, posed.vectors())
    posed.model.train()
    posed.loss(posed.model(posed.x), posed.y).backward()
    assert all(p.grad is not None for p in posed.model.parameters())


# ---------------------------------------------------------------------- what makes a risk ill-defined


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.Dropout(0.5), "'1' .Dropout. is in training mode"),
        (nn.AlphaDropout(0.1), "AlphaDropout"),
        (nn.BatchNorm1d(4), "BatchNorm1d.*statistics of the batch"),
        (nn.LSTM(4, 4, 2, dropout=0.5), "random|training"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
@pytest.mark.parametrize("kind", ["gradient", "diagonal"])
def test_random_or_coupled_layers_in_training_mode_are_refused(kind, layer, message):
    if isinstance(layer, nn.LSTM):
        model = Model(lambda s, x: s.l(x)[0], l=layer)
    else:
        model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4))
    risk = cx.EmpiricalRisk(model.train(), nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
    with pytest.raises(RuntimeError, match=message):
        risk.gradient() if kind == "gradient" else risk.empirical_fisher().diagonal()
    model.eval()
    assert risk.gradient().isfinite().all()


def test_dropout_of_probability_zero_is_no_dropout():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train()
    assert (
        cx.EmpiricalRisk(model, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
        .gradient()
        .any()
    )


def test_functional_dropout_is_found_by_the_generator_that_moved():
    model = Model(lambda s, x: F.dropout(s.a(x), 0.5, training=True), a=nn.Linear(4, 3)).eval()
    state = torch.get_rng_state()
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (torch.zeros(5, 4), torch.zeros(5, 3)))
    with pytest.raises(RuntimeError, match="drew random numbers"):
        risk.gradient()
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(RuntimeError, match="no running statistics"):
        cx.EmpiricalRisk(model, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 3))).gradient()


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq"])
def test_an_embedding_whose_gradient_is_no_derivative_is_refused(option):
    value = 1.0 if option == "max_norm" else True
    model = nn.Sequential(nn.Embedding(6, 4, **{option: value}), nn.Flatten())
    with pytest.raises(RuntimeError, match=option):
        cx.EmpiricalRisk(
            model, nn.MSELoss(), (torch.randint(6, (5, 1)), torch.randn(5, 4))
        ).gradient()


def test_sparse_embedding_gradients_are_handled(device):
    sparse = (
        nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3))
        .double()
        .to(device)
    )
    dense = copy.deepcopy(sparse)
    dense[0].sparse = False
    x, y = torch.randint(6, (5, 3)).to(device), torch.randint(3, (5,)).to(device)
    loss = nn.CrossEntropyLoss()
    oracle = Oracle(dense, loss, x, y)
    risk = cx.EmpiricalRisk(sparse, loss, (x, y))
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.empirical_fisher().diagonal(), oracle.empirical_fisher().diagonal())
    V = torch.randn(oracle.size, 2).to(oracle.output)
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.hessian() @ V, oracle.hvp(V))


# ---------------------------------------------------------------------- operations without second derivatives


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


# ---------------------------------------------------------------------- activation checkpointing


def parts_of_checkpointing():
    module = torch.utils.checkpoint
    return module.CheckpointFunction.apply, module._checkpoint_hook


@pytest.mark.parametrize("options", [{}, {"params": "b.*"}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_answer(reentrant, options, device):
    """With ``params="b.*"`` nothing before the block requires a gradient, which the reentrant variant needs."""
    posed = pose("layer_norm", device=device)
    first, *block, last = posed.model

    def call(s, x):
        return s.last(checkpoint(s.b, s.first(x), use_reentrant=reentrant))

    model = Model(call, first=first, b=nn.Sequential(*block), last=last)
    named = dict(model.named_parameters())
    names = [n for n in named if options.get("params") is None or n.startswith("b.")]
    oracle = Oracle(posed.model, posed.loss, posed.x, posed.y)
    oracle.leaves = [named[n] for n in names]
    oracle.size = sum(p.numel() for p in oracle.leaves)
    V = posed.vectors()[: oracle.size]
    H, G, E = oracle.hvp(V), oracle.ggn(), oracle.empirical_fisher()
    norms = oracle.sample_gradients().norm(dim=1)
    expected = [H, G @ V, H - G @ V, E @ V, oracle.gradient(), E.diagonal(), norms, E.trace()]
    before = parts_of_checkpointing()
    risk = cx.EmpiricalRisk(model, posed.loss, posed.data, **options)
    assert_all_close(everything(risk, V), expected)
    assert_all_close(everything(risk, V), expected)
    assert_close(risk.ggn().diagonal(), G.diagonal())
    # afterwards the model checkpoints again
    assert parts_of_checkpointing() == before
    runs = []
    block[0].register_forward_hook(lambda *_: runs.append(1))
    x = posed.x.detach().requires_grad_()
    posed.loss(model(x), posed.y).backward()
    assert len(runs) == 2


@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_has_the_curvature_of_the_model_and_all_fast_paths(in_place, device):
    posed = pose("attention", device=device)
    V = posed.vectors()
    expected = posed.oracle.hvp(V), posed.oracle.ggn() @ V
    model = posed.model
    if in_place:
        model.compile(backend="aot_eager")
    else:
        model = torch.compile(model, backend="aot_eager")
    model(posed.x)  # compiled for use outside
    risk = cx.EmpiricalRisk(model, posed.loss, (posed.x, posed.y))
    assert_close(risk.hessian() @ V, expected[0])
    assert_close(risk.ggn() @ V, expected[1])
    assert "general" not in risk.explain()


def test_a_model_that_draws_and_then_fails_leaves_the_generator_as_found():
    def failing(s, x):
        torch.rand(3)
        raise KeyError("of the model's own")

    data = (torch.randn(5, 4, generator=torch.Generator()), torch.zeros(5, dtype=torch.int64))
    risk = cx.EmpiricalRisk(Model(failing, a=nn.Linear(4, 3)), nn.CrossEntropyLoss(), data)
    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="of the model's own"):
        risk.gradient()
    assert torch.equal(torch.get_rng_state(), before)


class Force(nn.Module):
    """The derivative of an energy by its input, as models of molecules give it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x):
        x.requires_grad_()
        energy = self.second(torch.tanh(self.first(x))).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force


@pytest.mark.parametrize("quantity", ["ggn", "hessian", "empirical_fisher"])
def test_a_model_that_differentiates_by_its_input_leaves_the_batch_as_found(quantity):
    torch.manual_seed(0)
    model = Force().double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    operator = getattr(cx.EmpiricalRisk(model, nn.MSELoss(), (x, y)), quantity)()
    v = torch.randn(operator.size, dtype=torch.float64)
    product = operator @ v
    assert not x.requires_grad and x.grad is None
    assert torch.allclose(operator @ v, product)
    parameters = list(model.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])

    def outputs(theta):
        blocks = theta.split([p.numel() for p in parameters])
        named = {
            name: block.view(p.shape)
            for (name, p), block in zip(model.named_parameters(), blocks, strict=True)
        }
        return torch.func.functional_call(model, named, (x.clone(),))

    J = torch.autograd.functional.jacobian(outputs, flat)  # [N, D, P]
    if quantity == "ggn":
        expected = torch.einsum("ndp,ndq,q->p", J, J, v) * 2 / y.numel()
    elif quantity == "empirical_fisher":
        g = torch.einsum("ndp,nd->np", J, outputs(flat).detach() - y) * 2 / 3
        expected = g.T @ (g @ v) / 4
    else:
        H = torch.autograd.functional.hessian(lambda t: ((outputs(t) - y) ** 2).mean(), flat)
        expected = H @ v
    assert torch.allclose(product, expected)
