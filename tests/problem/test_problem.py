"""The problem: batches, cache, freshness, determinism, and errors that name their cause."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from answers import assert_all_close, assert_same, everything, risk_of
from compare import assert_close
from models import Model, make
from oracles import Oracle
from problems import pose
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import curvext as cx
from curvext.fingerprints import strided_parts


@pytest.fixture
def posed(device):
    return pose("cnn", "ce", device=device)


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


def shuffling(posed, **options):
    return DataLoader(TensorDataset(posed.x, posed.y), batch_size=2, shuffle=True, **options)


@pytest.mark.parametrize("cache", [True, False])
def test_a_loader_with_a_generator_comes_in_the_same_order_and_leaves_the_generator(cache):
    posed = pose("mlp", "ce")
    V = posed.vectors()
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    risk = risk_of(posed, shuffling(posed, generator=generator), cache=cache)
    E, M = risk.empirical_fisher(), risk.mc_fisher(seed=0)
    dense = risk_of(posed).empirical_fisher().to_dense()
    found = E.eigh(2)
    assert_close(found.values, torch.linalg.eigvalsh(dense)[-2:])
    assert_close(dense @ E.solve(V, 0.1) + 0.1 * E.solve(V, 0.1), V)
    assert torch.equal(M @ V, M @ V)
    assert torch.equal(generator.get_state(), before)


def test_what_goes_by_the_order_of_samples_refuses_another_order():
    posed = pose("mlp", "ce")
    V = posed.vectors()
    risk = risk_of(posed, shuffling(posed), cache=False)
    torch.manual_seed(0)
    M, H = risk.mc_fisher(), risk.hessian()
    M @ V, H @ V
    torch.manual_seed(1)
    H @ V  # a sum over samples
    with pytest.raises(ValueError, match="another order than the one before, and the labels drawn"):
        M @ V


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_a_model_may_hold_sparse_tensors(layout):
    def answers(sparse):
        torch.manual_seed(0)
        model = Model(
            lambda s, x: s.b(torch.tanh(s.a(s.A @ x))), a=nn.Linear(4, 6), b=nn.Linear(6, 3)
        )
        mixing = torch.eye(5) + torch.rand(5, 5).round()
        model.register_buffer("A", mixing.to_sparse(layout=layout) if sparse else mixing)
        data = (torch.randn(5, 4), torch.randint(3, (5,)))
        risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, cache=True)
        forwards: list[int] = []
        model.a.register_forward_hook(lambda *_: forwards.append(1))
        V = torch.randn(risk.space.size, 2)
        first = [risk.hessian() @ V, risk.ggn() @ V, risk.gradient()]
        strided_parts([model.A])[-1].view(-1)[0] = 3.0  # the first entry
        forwards.clear()
        later = [risk.ggn() @ V, risk.ggn() @ V]
        assert len(forwards) == 1, "linearised after the change, and kept from then on"
        return [*first, *later]

    expected = answers(sparse=False)
    for got, want in zip(answers(sparse=True), expected, strict=True):
        assert_close(got, want, tol=1e-4)


def test_data_made_in_inference_mode_are_data():
    posed = pose("cnn", "ce")
    V = posed.vectors()
    with torch.inference_mode():
        x, y = posed.x.clone(), posed.y.clone()
    assert_same(everything(risk_of(posed, (x, y)), V), everything(risk_of(posed), V))


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
        ValueError,
        match="cache: expected an integer of at least 0 .bytes, or 'auto', True or False., got",
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
        ("tied", "emb.weight", "tied"),
        ("tied_square", "w", "tied"),
        ("tied_square_untransposed", "w", "fused"),
        ("tied_with_padding", "w", "tied"),
        ("tied_transposed", "w", "overlapping"),
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
    "a step of a fused optimizer": lambda m, x: step(m, x, torch.optim.Adam, fused=True),
    "a change through .data": lambda m, x: m[0].weight.data.mul_(1.1),
    "another tensor as .data": lambda m, x: setattr(m[0].weight, "data", m[0].weight.data * 1.1),
    "a changed buffer": lambda m, x: m[1].running_mean.add_(0.5),
    "changed inputs": lambda m, x: x.mul_(1.1),
    "numpy": lambda m, x: m[0].weight.detach().numpy().__imul__(1.1),
    "a change of sign": lambda m, x: m[0].weight.data.neg_(),
    "a doubling": lambda m, x: m[0].weight.data.mul_(2),
    "another order": lambda m, x: m[0].weight.data.copy_(m[0].weight.data.flip(0)),
    "load_state_dict with assign": lambda m, x: m.load_state_dict(
        {k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()}, assign=True
    ),
    "another parameter": lambda m, x: setattr(m[0], "weight", nn.Parameter(m[0].weight * 1.1)),
    "another module": lambda m, x: m.__setitem__(0, scaled(m[0])),
    "another function": lambda m, x: m.__setitem__(activation_of(m), nn.Softplus()),
}


def scaled(module):
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weight.mul_(1.1)
    return other


def activation_of(model):
    return next(i for i, m in enumerate(model) if not list(m.parameters()) and i > 0)


def step(model, x, kind=torch.optim.SGD, **options):
    optimizer = kind(model.parameters(), lr=0.1, **options)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_returned_after(change, cache, device):
    if change == "numpy" and device.type != "cpu":
        pytest.skip("NumPy writes to the CPU's memory alone")
    posed = pose("cnn", "ce", device=device)
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


def test_a_changed_weight_of_the_loss_is_seen(posed):
    V = posed.vectors()
    loss = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64, device=posed.x.device))
    risk = cx.EmpiricalRisk(posed.model, loss, (posed.x, posed.y), cache=True)
    risk.hessian() @ V
    loss.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
    assert_close(risk.hessian() @ V, Oracle(posed.model, loss, posed.x, posed.y).hvp(V))


def test_a_product_within_autocast_does_not_serve_without():
    posed = pose("mlp", "ce", dtype=torch.float32)
    V = posed.vectors()
    risk = risk_of(posed, cache=True)
    outside = risk.ggn() @ V
    with torch.autocast("cpu", torch.bfloat16):
        inside = risk.ggn() @ V
    assert not torch.equal(inside, outside)
    assert torch.equal(risk.ggn() @ V, outside)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: nn.utils.parametrizations.weight_norm(m[0]),
            r"gone \['0.weight'\], new \['0.parametrizations",
        ),
        (lambda m: m.float(), r"'0.weight' was .*float64 .* is .*float32"),
        (lambda m: m.__setitem__(0, nn.Linear(4, 7).double()), r"params: '0.weight' was \["),
    ],
    ids=["parametrised", "another dtype", "another shape"],
)
def test_a_model_with_other_parameters_needs_another_risk(change, message):
    posed = pose("mlp", "ce")
    risk = risk_of(posed)
    risk.gradient()
    change(posed.model)
    with pytest.raises(ValueError, match=message):
        risk.gradient()


def test_weights_that_are_no_longer_tied_need_another_risk():
    posed = pose("tied", "ce")
    risk = risk_of(posed)
    risk.gradient()
    posed.model.load_state_dict(
        {k: v.clone() for k, v in posed.model.state_dict().items()}, assign=True
    )
    with pytest.raises(ValueError, match=r"gone \[\], new \['"):
        risk.gradient()


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


# ---------------------------------------------------------------------- copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
@pytest.mark.parametrize("options", [{}, {"compile": "eager"}], ids=str)
def test_a_risk_that_has_made_products_can_be_copied_and_pickled(options, copied):
    posed = pose("mlp", "ce")
    risk = risk_of(posed, **options)
    v = posed.vectors()[:, 0]
    operators = [risk.hessian(), risk.ggn(), risk.empirical_fisher(), risk.mc_fisher(seed=3)]
    expected = [A @ v for A in operators]
    diagonals = [operators[2].diagonal(), operators[3].diagonal()]
    kept = risk.explain()
    twin, others = copied((risk, operators))
    assert others[0]._problem is twin and twin._model is not posed.model
    assert "kept: 0 linearisations" in copied(risk).explain()
    assert risk.explain() == kept  # what the first keeps stays there
    for A, product in zip(others, expected, strict=True):
        assert torch.equal(A @ v, product)
    assert torch.equal(others[2].diagonal(), diagonals[0])
    assert torch.equal(others[3].diagonal(), diagonals[1])
    with torch.no_grad():
        posed.model[0].weight.mul_(2)  # the models have parted
    assert torch.equal(others[0] @ v, expected[0])
    assert not torch.equal(operators[0] @ v, expected[0])
    assert torch.equal(copied(twin.ggn() + 0.5 * cx.Identity(len(v))) @ v, others[1] @ v + 0.5 * v)
