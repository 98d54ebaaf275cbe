"""``curvext.backward`` is a loop of autograd over losses[n]: Σ_n w_n g_n into .grad, norms and squares beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from models import CASES, CLASSIFIERS, Model, N, make, par
from torch import nn
from torch.utils.checkpoint import checkpoint

import curvext as cx


def call(model, x):
    output = model(**x) if isinstance(x, Mapping) else model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


def losses_of(model, x, device="cpu"):
    y = torch.arange(N, device=device) % 3
    return F.cross_entropy(call(model, x), y, reduction="none")


def rows(losses, parameters):
    """∇losses[n] by one pass of autograd for each n, ``[N, P]``; hooks of the user's are for the sum alone."""
    parameters = list(parameters)
    hooks = [p._backward_hooks for p in parameters]
    for p in parameters:
        p._backward_hooks = None
    found = []
    for loss in losses:
        if not loss.requires_grad:
            found.append(torch.cat([torch.zeros_like(p).flatten() for p in parameters]))
            continue
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found.append(
            flat(
                [
                    torch.zeros_like(p) if g is None else g
                    for g, p in zip(gradients, parameters, strict=True)
                ]
            )
        )
    for p, had in zip(parameters, hooks, strict=True):
        p._backward_hooks = had
    return torch.stack(found)


def flat(tensors):
    return torch.cat([t.detach().to_dense().reshape(-1) for t in tensors])


def grads(parameters):
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def clipping(bound):
    return lambda norms: (bound / norms).clamp(max=1) / len(norms)


def check(losses, model, tol=None, **options):
    """Everything that is asked for, against the loop over samples."""
    parameters = trained(model) if isinstance(model, nn.Module) else list(model)
    g = rows(losses, parameters)
    weights = clipping(float(g.norm(dim=1).mean()))
    before = grads(parameters)
    out = cx.backward(losses, model, weights=weights, norms=True, squares=True, **options)
    assert_close(out.norms, g.norm(dim=1), "norms", tol)
    assert_close(flat(out.squares.values()), g.square().sum(0), "squares", tol)
    assert_close(out.weights, weights(g.norm(dim=1)), "weights", tol)
    clipped = out.weights.to(g.dtype) @ g
    assert_close(grads(parameters) - before, clipped, "gradient", tol, float(before.abs().max()))
    return out


# ---------------------------------------------------------------------- the definition


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_backward_is_a_loop_of_autograd_over_the_losses(name, device):
    model, x = make(name, device)
    check(losses_of(model, x, device), model)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "tied", "lstm", "bilinear"])
def test_norms_with_known_weights_are_those_of_the_loop(name, device):
    model, x = make(name, device)
    losses = losses_of(model, x, device)
    g, w = rows(losses, trained(model)), torch.randn(N, dtype=torch.float64, device=device)
    out = cx.backward(losses, model, weights=w, norms=True, squares=True)
    assert_close(out.norms, g.norm(dim=1), "norms")
    assert_close(flat(out.squares.values()), g.square().sum(0), "squares")
    assert_close(grads(trained(model)), w @ g, "gradient")
    assert torch.equal(out.weights, w)


@pytest.mark.parametrize("options", [{}, {"norms": True}, {"squares": True}])
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "tied", "bilinear"])
def test_without_weights_the_gradient_is_that_of_the_mean(name, options, device):
    model, x = make(name, device, torch.float32)
    losses_of(model, x, device).mean().backward()
    expected = grads(trained(model))
    model.zero_grad()
    out = cx.backward(losses_of(model, x, device), model, **options)
    if options:
        assert_close(grads(trained(model)), expected, tol=1e-6)
    else:
        assert torch.equal(grads(trained(model)), expected)  # it is autograd's own
        assert set(out.paths.values()) == {"autograd"}
    assert torch.equal(out.weights, torch.full((N,), 1 / N, device=device))
    assert (out.norms is None) is ("norms" not in options)
    assert (out.squares is None) is ("squares" not in options)


@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "attention", "bilinear"])
def test_backward_takes_any_number_of_samples(name, samples, device):
    model, x = make(name, device, samples=samples)
    y = torch.arange(samples, device=device) % 3
    check(F.cross_entropy(call(model, x), y, reduction="none"), model)


LOSSES = {
    "squares": lambda z: z.square().mean(1),
    "bce": lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none").sum(1),
    "nll": lambda z: F.nll_loss(z.log_softmax(1), torch.zeros(len(z), dtype=torch.long), reduction="none"),
    "smoothed": lambda z: F.cross_entropy(z, z.detach().argmax(1), reduction="none", label_smoothing=0.1),
    "probabilities": lambda z: F.cross_entropy(z, torch.full_like(z, 1 / 3), reduction="none"),
    "weighted": lambda z: F.cross_entropy(z, z.detach().argmin(1), z.new_tensor([1.0, 2.0, 3.0]), reduction="none"),
    "huber": lambda z: F.huber_loss(z, torch.zeros_like(z), reduction="none").mean(1),
    "own": lambda z: (z.logsumexp(1) - z[:, 0]).clamp(min=0.1) * torch.arange(1.0, len(z) + 1, dtype=z.dtype),
    "two parts": lambda z: z[:, 0].square() + torch.where(z[:, 1] > 0, z[:, 1], 0.1 * z[:, 2]),
    "stacked": lambda z: torch.stack([row.square().sum() for row in z]),
    "concatenated": lambda z: torch.cat([z[:2].sum(1), z[2:].square().sum(1)]),
    "turned": lambda z: z.T.square().sum(0),
    "reordered": lambda z: z.square().sum(1)[torch.arange(len(z) - 1, -1, -1)],
    "some without graph": lambda z: torch.cat([z[:2].square().sum(1), z.new_zeros(len(z) - 2)]),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "conv2d", "attention"])
def test_losses_may_be_made_in_any_way(name, loss):
    model, x = make(name)
    check(LOSSES[loss](call(model, x)), model)


def test_a_reordered_loss_is_proven_for_its_own_order():
    model, x = make("mlp")
    for order in ([0, 1, 2, 3, 4], [2, 0, 1, 4, 3], [4, 3, 2, 1, 0]):
        check(losses_of(model, x)[torch.tensor(order)], model)


def test_a_model_that_reorders_its_samples_is_proven_for_each_order():
    class Reordering(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x, order):
            return self.b(torch.tanh(self.a(x[order]))[order.argsort()])

    model, x = Reordering().double(), torch.randn(N, 4, dtype=torch.float64)
    for order in ([0, 1, 2, 3, 4], [2, 0, 1, 4, 3]):
        losses = F.cross_entropy(model(x, torch.tensor(order)), torch.arange(N) % 3, reduction="none")  # fmt: skip
        check(losses, model)


def test_dropout_counts_with_the_masks_of_its_graph(device):
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout1d(0.3), nn.Linear(8, 3)
    )
    model = model.to(device, torch.float64).train()
    x = torch.randn(N, 4, dtype=torch.float64, device=device)
    for _ in range(2):
        out = check(losses_of(model, x, device), model)
    assert "general" not in " ".join(out.paths.values())


def test_experts_chosen_by_index_are_exact():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

        def forward(self, x):
            weights, chosen = self.gate(x).softmax(1).max(1)
            out = x.new_zeros(len(x), 3)
            for k, expert in enumerate(self.experts):
                mine = (chosen == k).nonzero().squeeze(1)
                out = out.index_add(0, mine, expert(x[mine]))
            return out * weights.unsqueeze(1)

    model = Experts().double()
    for _ in range(3):
        x = torch.randn(N, 4, dtype=torch.float64)
        check(losses_of(model, x), model)


def test_a_penalty_on_the_parameters_belongs_to_every_loss_it_was_added_to():
    model, x = make("mlp")
    check(losses_of(model, x) + 0.1 * model[0].weight.square().sum(), model)


# ---------------------------------------------------------------------- .grad, hooks, frozen and shared parameters


def test_two_calls_add_up(device):
    model, x = make("mlp", device)
    check(losses_of(model, x, device), model)
    check(2 * losses_of(model, x, device), model)


def test_retain_graph_allows_a_second_call_and_the_default_does_not():
    for options in ({"norms": True}, {}):
        model, x = make("mlp")
        losses = losses_of(model, x)
        g = rows(losses, trained(model))
        cx.backward(losses, model, retain_graph=True, **options)
        cx.backward(losses, model, **options)
        assert_close(grads(trained(model)), 2 * g.mean(0))
    with pytest.raises(RuntimeError, match="second time"):  # the last call was without samples
        losses.mean().backward()


def test_frozen_parameters_are_left_alone(device):
    model, x = make("mlp", device)
    model[0].weight.requires_grad_(False)
    out = check(losses_of(model, x, device), model)
    assert model[0].weight.grad is None and list(out.squares) == ["0.bias", "2.weight", "2.bias"]


def test_a_parameter_that_is_not_reached_has_no_gradient_and_squares_of_zero():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 3)}).double()
    out = cx.backward(
        losses_of(model["used"], torch.randn(N, 4, dtype=torch.float64)), model, squares=True
    )
    assert model["idle"].weight.grad is None
    assert out.paths["idle.weight"] == "unused"
    assert torch.equal(out.squares["idle.weight"], torch.zeros(3, 4, dtype=torch.float64))


def test_an_input_that_requires_grad_gets_none(device):
    model, x = make("mlp", device)
    x.requires_grad_(True)
    for options in ({}, {"norms": True}):
        cx.backward(losses_of(model, x, device), model, **options)
        assert x.grad is None


def test_hooks_on_parameters_see_the_sum_once():
    model, x = make("bilinear")  # one parameter of it takes the general path
    g = rows(losses_of(model, x), trained(model))
    seen = []
    for p in trained(model):
        p.register_hook(lambda gradient: gradient / 2)
        p.register_post_accumulate_grad_hook(lambda p: seen.append(id(p)))
    out = cx.backward(losses_of(model, x), model, norms=True)
    assert_close(out.norms, g.norm(dim=1))
    assert_close(grads(trained(model)), g.mean(0) / 2)
    assert sorted(seen) == sorted(id(p) for p in trained(model))
    assert all(len(p._backward_hooks) == 1 for p in trained(model))


def test_an_optimizer_step_in_a_hook_runs_as_with_autograd():
    twins = [make("mlp")[0] for _ in range(2)]
    _, x = make("mlp")
    for model in twins:
        for p in trained(model):

            def step(p):
                with torch.no_grad():
                    p.sub_(p.grad)
                p.grad = None

            p.register_post_accumulate_grad_hook(step)
    losses_of(twins[0], x).mean().backward()
    cx.backward(losses_of(twins[1], x), twins[1], norms=True)
    assert_close(flat(trained(twins[1])), flat(trained(twins[0])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32_and_accumulates_in_its_own(dtype, device):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, dtype)
    x = torch.randn(N, 4, device=device, dtype=dtype)
    double = copy.deepcopy(model).double()
    g = rows(losses_of(double, x.double(), device), trained(double))
    out = cx.backward(losses_of(model, x, device).float(), model, norms=True, squares=True)
    assert out.norms.dtype is out.squares["0.weight"].dtype is torch.float32
    assert all(p.grad.dtype is dtype for p in trained(model))
    assert_close(out.norms, g.norm(dim=1), tol=0.05)
    assert_close(flat(out.squares.values()), g.square().sum(0), tol=0.05)


def test_parameters_may_differ_in_dtype():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].float()

    def forward(x):
        return model[2](model[1](model[0](x.float())).double())

    x = torch.randn(N, 4, dtype=torch.float64)
    losses = F.cross_entropy(forward(x), torch.arange(N) % 3, reduction="none")
    g = [rows(losses, [p]) for p in trained(model)]
    out = cx.backward(losses, model, norms=True, squares=True)
    assert out.norms.dtype is torch.float64 and out.squares["0.weight"].dtype is torch.float32
    total = sum(part.double().square().sum(1) for part in g).sqrt()
    assert_close(out.norms, total, tol=1e-6)
    assert model[0].weight.grad.dtype is torch.float32


@pytest.mark.parametrize("asked", [torch.float64, torch.bfloat16])
def test_norms_and_squares_come_in_the_dtype_asked_for(asked):
    model, x = make("mlp", dtype=torch.float32)
    out = cx.backward(losses_of(model, x), model, norms=True, squares=True, dtype=asked)
    assert out.norms.dtype is asked and out.squares["0.weight"].dtype is asked
    assert model[0].weight.grad.dtype is torch.float32


def test_autocast_gives_the_gradients_that_autograd_gives(device):
    model, x = make("mlp", device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        losses = losses_of(model, x, device)
    g = rows(losses, trained(model))
    out = cx.backward(losses, model, norms=True, squares=True)
    assert_close(out.norms, g.norm(dim=1), tol=2e-2)
    assert_close(flat(out.squares.values()), g.square().sum(0), tol=2e-2)
    assert_close(grads(trained(model)), g.mean(0), tol=2e-2)


def test_a_scaled_loss_scales_norms_and_gradient_and_the_scaler_takes_it_back():
    model, x = make("mlp", dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    g = rows(losses_of(model, x), trained(model))
    before = flat(trained(model))
    scale = scaler.get_scale() if scaler.is_enabled() else 1.0
    clip = clipping(0.5)
    out = cx.backward(scaler.scale(losses_of(model, x)), model, weights=lambda n: clip(n / scale))
    assert_close(out.norms, scale * g.norm(dim=1))
    scaler.step(optimizer)
    scaler.update()
    assert_close(flat(trained(model)), before - 0.5 * (clip(g.norm(dim=1)) @ g))


def test_norms_that_overflow_reach_the_scaler_as_gradients_that_are_not_finite():
    model, x = make("mlp", dtype=torch.float32)
    cx.backward(1e30 * losses_of(model, x), model, weights=clipping(1.0))
    assert not torch.isfinite(grads(trained(model))).all()


# ---------------------------------------------------------------------- what stands for the parameters


def test_parameters_may_be_a_module_an_iterable_or_a_mapping():
    model, x = make("mlp")
    expected = cx.backward(losses_of(model, x), model, squares=True).squares
    one_by_one = cx.backward(losses_of(model, x), model.parameters(), squares=True).squares
    assert list(one_by_one) == ["0", "1", "2", "3"]
    named = cx.backward(losses_of(model, x), dict(model.named_parameters()), squares=True).squares
    pairs = cx.backward(losses_of(model, x), model.named_parameters(), squares=True).squares
    assert list(named) == list(pairs) == list(expected)
    alone = cx.backward(losses_of(model, x), model[2].weight, squares=True).squares
    assert list(alone) == ["0"]
    for a, b in zip(expected.values(), one_by_one.values(), strict=True):
        assert_close(b, a)
    assert_close(alone["0"], expected["2.weight"])


def test_a_selection_of_the_parameters_is_all_that_gets_a_gradient():
    model, x = make("mlp")
    some = [model[2].weight, model[0].bias]
    check(losses_of(model, x), some)
    assert model[0].weight.grad is None and model[2].bias.grad is None


def test_raw_parameters_without_a_module_are_parameters():
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(N, 4, dtype=torch.float64)
    check((x @ w).square().sum(1), [w])


def test_tied_parameters_are_one():
    model, x = make("tied")
    out = check(losses_of(model, x), model)
    assert list(out.squares) == [name for name, _ in model.named_parameters()]
    twice = cx.backward(losses_of(model, x), [model.emb.weight, model.out.weight], squares=True)
    assert list(twice.squares) == ["0"]


# ---------------------------------------------------------------------- refusals


def test_batch_norm_in_training_mode_is_refused_by_name(device):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(device)
    x = torch.randn(N, 4, device=device)
    for options in ({"norms": True}, {"squares": True}, {"weights": clipping(1.0)}):
        with pytest.raises(ValueError, match=r"losses: '1' \(BatchNorm1d\) is in training mode"):
            cx.backward(losses_of(model, x, device), model, **options)
    with pytest.raises(ValueError, match="losses: .*BatchNorm.* is in training mode"):
        cx.backward(losses_of(model, x, device), model.parameters(), norms=True)
    assert all(p.grad is None for p in model.parameters())
    model[1].eval()
    cx.backward(losses_of(model, x, device), model, norms=True)


def test_batch_norm_in_training_mode_is_autograds_without_samples():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    losses_of(model, x).mean().backward()
    expected = grads(trained(model))
    model.zero_grad()
    cx.backward(losses_of(model, x), model)
    assert_close(grads(trained(model)), expected)


def test_samples_that_are_coupled_otherwise_go_one_by_one_and_exactly():
    model = Model(
        lambda s, x: s.b(torch.tanh(s.a(x) - s.a(x).mean(0))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)
    ).double()
    out = check(losses_of(model, torch.randn(N, 4, dtype=torch.float64)), model)
    assert not out.paths["a.weight"].startswith("fused")
    assert out.paths["b.weight"].startswith("fused")


HOOKS = {
    "scales": lambda g: g / 2,
    "clamps": lambda g: g.clamp(-0.1, 0.1),
    "clips each sample": lambda g: g * (0.1 / g.norm(dim=1, keepdim=True)).clamp(max=1),
    "looks": lambda g: None,
}


def hooked(hook):
    model, x = make("mlp")
    h = model[1](model[0](x))
    h.register_hook(hook)
    return F.cross_entropy(model[2](h), torch.arange(N) % 3, reduction="none"), model


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_tensors_that_keep_samples_apart_are_exact(hook):
    for _ in range(2):
        check(*hooked(HOOKS[hook]))


MIXING = [lambda g: g / g.norm(), lambda g: g - g.mean(0), lambda g: g + torch.randn_like(g)]


@pytest.mark.parametrize("hook", MIXING)
def test_hooks_on_tensors_that_mix_samples_are_refused_or_each_sample_goes_by_itself(hook):
    for _ in range(2):
        losses, model = hooked(hook)
        try:
            check(losses, model)
        except ValueError as error:
            assert "losses[2] by itself" in str(error) and "a hook on a tensor" in str(error)
            assert all(p.grad is None for p in model.parameters())
    check(losses_of(model, make("mlp")[1]), model)


def test_the_hooks_of_a_module_are_looked_at_too():
    model, x = make("mlp")
    model[2].register_full_backward_hook(lambda m, before, after: (before[0] / before[0].norm(),))
    try:
        check(losses_of(model, x), model)
    except ValueError as error:
        assert "by itself" in str(error)


def test_instance_norm_is_no_batch_norm():
    model, x = make("instance_norm")
    check(losses_of(model.train(), x), model)


def test_a_compiled_model_is_refused_for_samples_and_told_the_way_out():
    model, x = make("mlp", dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(ValueError, match="torch.compile made one node.*_orig_mod"):
        cx.backward(losses_of(compiled, x), compiled, norms=True)
    cx.backward(losses_of(compiled, x), compiled)
    expected = grads(trained(model))
    model.zero_grad()
    out = cx.backward(losses_of(model, x), compiled, squares=True)
    assert_close(grads(trained(model)), expected)
    assert list(out.squares) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_exact_or_refused(reentrant):
    model, x = make("mlp")
    x.requires_grad_(True)  # reentrant checkpoints need it

    def losses():
        z = checkpoint(lambda t: model[1](model[0](t)), x, use_reentrant=reentrant)
        return F.cross_entropy(model[2](z), torch.arange(N) % 3, reduction="none")

    if reentrant:
        with pytest.raises(ValueError, match="CheckpointFunctionBackward: reentrant activation"):
            cx.backward(losses(), model, norms=True)
        assert all(p.grad is None for p in model.parameters())
        return
    g = rows(losses_of(model, x), trained(model))
    out = cx.backward(losses(), model, weights=clipping(1.0), squares=True)
    assert_close(out.norms, g.norm(dim=1))
    assert_close(flat(out.squares.values()), g.square().sum(0))
    assert_close(grads(trained(model)), out.weights @ g)


def test_a_sparse_embedding_is_refused_for_samples_and_stays_sparse_without():
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randint(6, (N, 2))
    with pytest.raises(ValueError, match=r"EmbeddingBackward0.*sparse=True.*pass sparse=False"):
        cx.backward(losses_of(model, x), model, norms=True)
    cx.backward(losses_of(model, x), model)
    assert model[0].weight.grad.is_sparse


def losses_and_model():
    model, x = make("mlp")
    return losses_of(model, x), model


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda losses: losses.mean(), ValueError, r"losses: expected shape \[N\], got \[\].*reduction='none'"),
        (lambda losses: losses.view(-1, 1), ValueError, r"losses: expected shape \[N\], got \[5, 1\]; sum or average"),
        (lambda losses: losses[:0], ValueError, "losses: empty; at least one sample"),
        (lambda losses: losses.detach(), ValueError, "losses: no graph leads from them"),
        (lambda losses: losses / torch.tensor([1.0, 0, 1, 1, 1]), ValueError, r"losses: losses\[1\] is inf"),
        (lambda losses: losses.to(torch.complex128), TypeError, "losses: expected real floating point"),
        (lambda losses: losses.tolist(), TypeError, r"losses: expected a tensor \[N\], got list"),
    ],
)  # fmt: skip
def test_losses_that_do_not_fit_are_refused(change, error, message):
    losses, model = losses_and_model()
    with pytest.raises(error, match=message):
        cx.backward(change(losses), model)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "weights, error, message",
    [
        (torch.ones(4), ValueError, r"weights: expected shape \[5\], got \[4\]"),
        (torch.full((5,), torch.nan), ValueError, "weights: contains nan or inf"),
        (torch.ones(5, dtype=torch.complex64), TypeError, "weights: expected real numbers"),
        (0.5, TypeError, r"weights: expected None, a tensor \[5\] or a function of the norms, got float"),
        (lambda n: n.sum(), ValueError, r"weights: the function's answer: expected shape \[5\], got \[\]"),
        (lambda n: n.tolist(), TypeError, "weights: the function gave list"),
        (lambda n: n / 0, ValueError, "weights: the function's answer: contains nan or inf"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(weights, error, message):
    losses, model = losses_and_model()
    with pytest.raises(error, match=message):
        cx.backward(losses, model, weights=weights)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        (3, TypeError, "parameters: expected a torch.nn.Module, or an iterable or mapping.*got int"),
        ([1.0], TypeError, "parameters: '0': expected a tensor, got float"),
        ([], ValueError, "parameters: none requires grad"),
        ([par(3).requires_grad_(False)], ValueError, "parameters: none requires grad"),
        ([par(3)], ValueError, "losses: their graph leads to none of the parameters"),
        ([par(3) * 2], ValueError, "parameters: '0' is no leaf"),
        ([nn.Parameter(torch.ones(2, dtype=torch.complex64))], TypeError, "'0' has dtype torch.complex64"),
        (nn.LazyLinear(3), ValueError, "parameters: 'weight' is not initialised"),
        (nn.DataParallel(nn.Linear(2, 2)), ValueError, "parameters: DataParallel"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused(parameters, error, message):
    losses, _ = losses_and_model()
    with pytest.raises(error, match=message):
        cx.backward(losses, parameters)


def test_second_order_graphs_and_words_for_flags_are_refused():
    losses, model = losses_and_model()
    with pytest.raises(ValueError, match="create_graph"):
        cx.backward(losses, model, create_graph=True)
    with pytest.raises(TypeError, match="backward: norms: expected True or False, got 1"):
        cx.backward(losses, model, norms=1)
    with pytest.raises(TypeError, match="backward: dtype: expected None or a floating dtype"):
        cx.backward(losses, model, norms=True, dtype=torch.int32)


def test_the_result_prints_itself():
    losses, model = losses_and_model()
    assert "norms=tensor" in repr(cx.backward(losses, model, norms=True))


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].coupled])
def test_coupled_networks_of_the_grid_are_exact_or_refused(name):
    model, x = make(name)
    try:
        check(losses_of(model, x), model)
    except ValueError as error:
        assert "losses:" in str(error)
