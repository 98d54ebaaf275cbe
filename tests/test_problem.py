"""The problem: batches, cache, freshness, determinism, the model left as found, and errors that name their cause."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from models import Model, make
from oracles import Oracle
from problems import pose
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import curvext as cx

KINDS = ["hessian", "ggn", "model_curvature", "empirical_fisher"]


@pytest.fixture
def posed(device):
    return pose("cnn", "ce", device=device)


def risk_of(posed, data=None, **options):
    return cx.EmpiricalRisk(
        posed.model, posed.loss, posed.data if data is None else data, **options
    )


def everything(risk, V):
    """All that a risk answers, in one list."""
    E = risk.empirical_fisher()
    products = [getattr(risk, kind)() @ V for kind in KINDS]
    return [*products, risk.gradient(), E.diagonal(), E.gradient_norms(), E.trace()]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def assert_all_close(a, b):
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert_close(x, y, f"answer {i}")


# ---------------------------------------------------------------------- value, gradient, batches


@pytest.mark.parametrize("sizes", [[5], [1, 4], [1, 1, 1, 1, 1], [3, 2]], ids=str)
def test_value_and_gradient_are_those_of_the_whole(sizes, posed):
    risk = risk_of(posed, posed.cut(*sizes))
    assert_close(torch.tensor(risk.value(), dtype=torch.float64), posed.oracle.value())
    assert_close(risk.gradient(), posed.oracle.gradient())


def test_an_empty_batch_among_others_is_skipped(posed):
    V = posed.vectors()
    batches = [posed.cut(2, 3)[0], (posed.x[:0], posed.y[:0]), posed.cut(2, 3)[1]]
    assert_all_close(everything(risk_of(posed, batches), V), everything(risk_of(posed), V))


@pytest.mark.parametrize("data", ["one", "all"])
def test_data_without_a_sample_are_refused(data, posed):
    empty = (posed.x[:0], posed.y[:0])
    with pytest.raises(ValueError, match="data: no batch has a sample"):
        risk_of(posed, empty if data == "one" else [empty, empty]).gradient()


def test_a_data_loader_is_a_list_of_its_batches(device):
    posed = pose("mlp", "ce")
    loader = DataLoader(TensorDataset(posed.x, posed.y), batch_size=2)
    V = posed.vectors()
    assert_all_close(everything(risk_of(posed, loader), V), everything(risk_of(posed), V))


def test_a_shuffling_loader_gives_the_same_products_on_every_pass():
    posed = pose("mlp", "ce")
    loader = DataLoader(TensorDataset(posed.x, posed.y), batch_size=2, shuffle=True)
    risk = risk_of(posed, loader)
    V = posed.vectors()
    assert_all_close(
        [risk.ggn() @ V, risk.gradient()], [posed.oracle.ggn() @ V, posed.oracle.gradient()]
    )
    assert_close(risk.hessian() @ V, posed.oracle.hvp(V))


class Augmented(Dataset):
    """Samples with fresh noise on every reading."""

    def __init__(self, x, y):
        self.x, self.y, self.draws = x, y, 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        self.draws += 1
        return self.x[i] + 0.01 * self.draws, self.y[i]


def test_a_loader_with_augmentation_is_refused_on_its_second_pass():
    posed = pose("mlp", "ce")
    risk = risk_of(posed, DataLoader(Augmented(posed.x, posed.y), batch_size=2))
    v = posed.vectors()[:, 0]
    with pytest.raises(ValueError, match="other samples than the one before.*augmentation"):
        for _ in range(2):
            risk.ggn() @ v


def test_a_loader_that_changes_its_length_is_refused():
    posed = pose("mlp", "ce")

    class Shrinking:
        left = 3

        def __iter__(self):
            self.left -= 1
            return iter(posed.cut(2, 2, 1)[: self.left])

    risk = risk_of(posed, Shrinking())
    risk.gradient()
    with pytest.raises(ValueError, match="4 then 2 samples"):
        risk.gradient()


def test_batches_may_differ_in_the_length_of_their_sequences(device):
    model, _ = make("attention", device)
    loss = nn.CrossEntropyLoss(reduction="sum")
    parts = [
        (torch.randn(n, t, 4).double().to(device), torch.randint(3, (n,)).to(device))
        for n, t in [(2, 3), (3, 5), (1, 2)]
    ]
    V = torch.randn(sum(p.numel() for p in model.parameters()), 2).double().to(device)
    oracles = [Oracle(model, loss, x, y) for x, y in parts]
    risk = cx.EmpiricalRisk(model, loss, parts)
    assert_close(risk.hessian() @ V, sum(o.hvp(V) for o in oracles))
    assert_close(risk.ggn() @ V, sum(o.ggn() @ V for o in oracles))
    E = risk.empirical_fisher()
    assert_close(E.diagonal(), sum(o.empirical_fisher().diagonal() for o in oracles))
    assert_close(E.gradient_norms(), torch.cat([o.sample_gradients().norm(dim=1) for o in oracles]))


def test_forward_and_target_say_how_a_batch_is_read(device):
    posed = pose("mlp", "ce", device=device)
    data = [{"picture": posed.x, "answer": posed.y}]
    risk = risk_of(posed, data, forward=lambda m, b: m(b["picture"]), target=lambda b: b["answer"])
    V = posed.vectors()
    assert_all_close(everything(risk, V), everything(risk_of(posed), V))


def test_labels_are_not_handed_to_a_model_that_takes_a_mapping(device):
    posed = pose("bert", "ce", device=device)
    handed = []
    handle = posed.model.register_forward_pre_hook(
        lambda m, a, kw: handed.append(set(kw)), with_kwargs=True
    )
    risk_of(posed).gradient()
    handle.remove()
    assert handed and all(keys == {"input_ids", "attention_mask"} for keys in handed)


# ---------------------------------------------------------------------- cache


@pytest.mark.parametrize("cache", [True, False, "auto", 0, 20_000, 1 << 30], ids=str)
def test_answers_do_not_depend_on_the_cache(cache, posed):
    V = posed.vectors()
    batches = posed.cut(2, 2, 1)
    assert_same(
        everything(risk_of(posed, batches, cache=cache), V), everything(risk_of(posed, batches), V)
    )


def test_a_kept_linearisation_runs_the_network_once(posed):
    runs = []
    posed.model.register_forward_hook(lambda *_: runs.append(1))
    risk = risk_of(posed, posed.cut(2, 3), cache=True)
    V = posed.vectors()
    for _ in range(3):
        risk.ggn() @ V
        risk.hessian() @ V
        risk.gradient()
    assert len(runs) == 2


def test_without_a_cache_nothing_is_kept_between_products(posed):
    runs = []
    posed.model.register_forward_hook(lambda *_: runs.append(1))
    risk = risk_of(posed, posed.cut(2, 3), cache=False)
    V = posed.vectors()
    risk.ggn() @ V
    before = len(runs)
    risk.ggn() @ V
    assert len(runs) == before + 2


@pytest.mark.parametrize("cache", ["all", -1, 1.5, None])
def test_an_unknown_cache_is_refused(cache, posed):
    with pytest.raises(
        ValueError, match="cache: expected 'auto', True, False or a number of bytes"
    ):
        risk_of(posed, cache=cache)


def test_explain_tells_the_path_of_every_parameter_and_what_is_kept(posed):
    risk = risk_of(posed, cache=True)
    risk.ggn() @ posed.vectors()
    told = risk.explain()
    for name, _ in posed.model.named_parameters():
        assert any(line.split()[:1] == [name] and "fused" in line for line in told.splitlines()), (
            told
        )
    assert f"P = {posed.oracle.size}" in told and "kept" in told


@pytest.mark.parametrize(
    "name, parameter, path",
    [
        ("tied", "emb.weight", "overlapping"),
        ("parametrised", "0.parametrizations.weight.original", "formed"),
        ("bilinear", "b.weight", "general"),
        ("unused", "b.weight", "unused"),
        ("centred_over_the_batch", "a.weight", "formed"),
    ],
)
def test_explain_names_the_slower_paths(name, parameter, path, device):
    posed = pose(name, device=device)
    (line,) = [
        line for line in risk_of(posed).explain().splitlines() if line.split()[:1] == [parameter]
    ]
    assert path in line, line


# ---------------------------------------------------------------------- freshness


def shifted(parameter):
    with torch.no_grad():
        parameter.mul_(1.1)


CHANGES = {
    "an in-place change": lambda m, x: shifted(m[0].weight),
    "an optimizer step": lambda m, x: step(m, x),
    "load_state_dict": lambda m, x: m.load_state_dict(
        {k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()}
    ),
    "a change through .data": lambda m, x: m[0].weight.data.mul_(1.1),
    "another tensor as .data": lambda m, x: setattr(m[0].weight, "data", m[0].weight.data * 1.1),
    "a changed buffer": lambda m, x: m[1].running_mean.add_(0.5),
    "changed inputs": lambda m, x: x.mul_(1.1),
    "numpy": lambda m, x: m[0].weight.detach().numpy().__imul__(1.1),
}


def step(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_returned_after(change, cache):
    posed = pose("cnn", "ce")
    V = posed.vectors()
    risk = risk_of(posed, cache=cache)
    before = everything(risk, V)
    CHANGES[change](posed.model, posed.x)
    after = everything(risk, V)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert_same(after, everything(risk_of(posed), V))
    oracle = Oracle(posed.model, posed.loss, posed.x, posed.y)
    assert_close(after[0], oracle.hvp(V))
    assert_close(after[1], oracle.ggn() @ V)


def test_changed_labels_are_seen(posed):
    V = posed.vectors()
    risk = risk_of(posed, cache=True)
    risk.gradient()
    posed.y.add_(1).remainder_(3)
    oracle = Oracle(posed.model, posed.loss, posed.x, posed.y)
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian() @ V, oracle.hvp(V))


def test_a_change_back_gives_the_first_answer_again(posed):
    V = posed.vectors()
    risk = risk_of(posed, cache=True)
    first = everything(risk, V)
    state = copy.deepcopy(posed.model.state_dict())
    shifted(posed.model[0].weight)
    everything(risk, V)
    posed.model.load_state_dict(state)
    assert_same(everything(risk, V), first)


def test_a_mode_switched_to_training_is_seen():
    posed = pose("cnn", "ce")
    risk = risk_of(posed, cache=True)
    risk.gradient()
    posed.model.train()
    with pytest.raises(RuntimeError, match=r"BatchNorm2d.*model.eval\(\)"):
        risk.gradient()


# ---------------------------------------------------------------------- determinism


@pytest.mark.parametrize("name", ["cnn", "encoder_layer", "tied", "gru", "bilinear"])
def test_identical_calls_give_identical_bits(name, device):
    posed = pose(name, device=device, dtype=torch.float32)
    V = posed.vectors()
    first = everything(risk_of(posed), V)
    assert_same(everything(risk_of(posed), V), first)
    other = pose(name, device=device, dtype=torch.float32)
    assert_same(everything(risk_of(other), V), first)


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


def test_a_forward_pass_that_writes_a_buffer_is_refused_and_undone():
    model = Model(lambda s, x: s.a(x) + 0 * s.count.add_(1), a=nn.Linear(4, 3))
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


# ---------------------------------------------------------------------- errors that name their cause


def plain():
    return nn.Linear(4, 3)


X, Y = torch.randn(5, 4), torch.randint(3, (5,))


@pytest.mark.parametrize(
    "model, data, error, message",
    [
        (plain(), (X, Y, Y), ValueError, "a batch must be a pair .*got 3 entries"),
        (plain(), [X, X, X], ValueError, "a batch must be a pair"),
        (plain(), {"x": X}, ValueError, "needs the key 'labels'|'x'"),
        (plain(), (X, Y[:4]), ValueError, r"the output has 5 samples .*the target 4"),
        (
            plain(),
            (X.clone().index_fill_(0, torch.tensor(2), float("nan")), Y),
            ValueError,
            "data: a tensor .* contains nan or inf",
        ),
        (Model(lambda s, x: s.a(x).sum(), a=plain()), (X, Y), ValueError, "the output is a scalar"),
        (
            Model(lambda s, x: (s.a(x), x), a=plain()),
            (X, Y),
            TypeError,
            "the output is a tuple without .logits",
        ),
        (Model(lambda s, x: s.a(x).argmax(1), a=plain()), (X, Y), TypeError, "dtype torch.int64"),
        (
            Model(lambda s, x: s.a(x) / 0, a=plain()),
            (X, Y),
            ValueError,
            "model: the output .* contains nan or inf",
        ),
    ],
    ids=range(9),
)
def test_a_batch_or_output_of_no_accepted_form_is_refused(model, data, error, message):
    forward = None
    if isinstance(data, dict):
        forward = lambda m, b: m(b["x"])  # noqa: E731
    with pytest.raises(error, match=message):
        cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, forward=forward).gradient()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused_by_name(bad, posed):
    risk = risk_of(posed)
    with torch.no_grad():
        posed.model[4].bias[1] = bad
    with pytest.raises(ValueError, match="params: '4.bias' contains nan or inf"):
        risk.gradient()


def test_a_mean_over_nothing_is_refused(posed):
    y = torch.full_like(posed.y, -100)
    risk = risk_of(posed, (posed.x, y))
    for act in (risk.value, risk.gradient, risk.empirical_fisher().diagonal):
        with pytest.raises(ValueError, match="every position is ignored"):
            act()


def test_a_model_that_does_not_reach_its_parameters_gets_zeros():
    model = Model(lambda s, x: x[:, :3] * 1.0, a=plain())
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (X, Y))
    for answer in everything(risk, torch.randn(15, 2)):
        assert not answer.any()


@pytest.mark.parametrize(
    "shape, call",
    [
        ((5, 3), lambda s, x: s.w),
        ((3, 5), lambda s, x: s.w.t()),
        ((15,), lambda s, x: s.w.view(5, 3)),
        ((3,), lambda s, x: s.w.expand(5, 3)),
        ((5, 3), lambda s, x: s.w.exp()),
    ],
    ids=range(5),
)
def test_an_output_that_no_data_enters_is_right(shape, call):
    """f = θ, or a rearrangement of it: the output is a leaf, or nearly."""
    model = Model(call, w=nn.Parameter(torch.randn(shape).double()))
    loss = nn.CrossEntropyLoss()
    oracle = Oracle(model, loss, X, Y)
    risk = cx.EmpiricalRisk(model, loss, (X, Y))
    V = torch.randn(oracle.size, 2).double()
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.empirical_fisher() @ V, oracle.empirical_fisher() @ V)
    assert_close(risk.empirical_fisher().diagonal(), oracle.empirical_fisher().diagonal())
    assert_close(risk.empirical_fisher().gradient_norms(), oracle.sample_gradients().norm(dim=1))
