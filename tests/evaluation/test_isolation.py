"""The model, its settings and the batch are left as found, also after errors."""

from __future__ import annotations

import pytest
import torch
from ability import needs_plain
from answers import assert_same, everything, risk_of
from compare import assert_close
from models import Model
from oracles import Oracle
from problems import pose
from torch import nn

import curvext as cx
from curvext.gradients import convolution, outer_product


@pytest.fixture
def posed(device):
    return pose("cnn", "ce", device=device)


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
