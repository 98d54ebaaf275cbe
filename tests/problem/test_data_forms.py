"""Data as people have it: read as it is meant, or refused with the lines that say how."""

from __future__ import annotations

from collections import namedtuple
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import Oracle
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import curvext as cx

X, Y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
CE = nn.CrossEntropyLoss()


def network(*sizes: int) -> nn.Sequential:
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def check_against(risk: cx.EmpiricalRisk, oracle: Oracle) -> None:
    """Gradient, H, G and F_emp of a risk are those of the dense oracle."""
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian().to_dense(), oracle.hvp(torch.eye(oracle.size).double()))
    assert_close(risk.ggn().to_dense(), oracle.ggn())
    assert_close(risk.empirical_fisher().to_dense(), oracle.empirical_fisher())


# ---------------------------------------------------------------------- batches of three and more


class Gated(nn.Module):
    """Takes a second input beside the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, gate):
        return self.layer(x) * gate.unsqueeze(1)


Three = namedtuple("Three", "x y gate")
GATE = torch.rand(6).double()


@pytest.mark.parametrize(
    "data",
    [
        (X, Y, GATE),
        [X, Y, GATE],
        [(X[:2], Y[:2], GATE[:2]), (X[2:], Y[2:], GATE[2:])],
        Three(X, Y, GATE),
        DataLoader(TensorDataset(X, Y, GATE), batch_size=4),
        ({"x": X}, Y, GATE),
    ],
    ids=["tuple", "list", "batches", "namedtuple", "loader", "mapping first"],
)
def test_a_batch_of_three_is_refused_with_two_lines_that_take_it(data):
    model = Gated().double()
    lines = (
        r"got 3 entries.*forward=lambda model, batch: model\(batch\[0\], batch\[2\]\), "
        r"target=lambda batch: batch\[1\]"
    )
    with pytest.raises(ValueError, match=lines):
        cx.EmpiricalRisk(model, CE, data).value()
    if isinstance(data, tuple) and isinstance(data[0], dict):
        return
    risk = cx.EmpiricalRisk(
        model,
        CE,
        data,
        forward=lambda model, batch: model(batch[0], batch[2]),
        target=lambda batch: batch[1],
    )
    check_against(risk, Oracle(Fixed(model), CE, X, Y))


class Fixed(nn.Module):
    """The same with the gates of all samples built in."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x, GATE)


# ---------------------------------------------------------------------- mappings


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, values):
        return self.layer(values)


@pytest.mark.parametrize("batches", [1, 2])
def test_what_a_mapping_has_beside_the_inputs_is_named_with_the_lines_that_leave_it_out(batches):
    model = Named().double()
    cut = [slice(0, 6)] if batches == 1 else [slice(0, 2), slice(2, 6)]
    data = [
        {"values": X[c], "labels": Y[c], "text": ["word"] * 6, "index": torch.arange(6)[c]}
        for c in cut
    ]
    lines = (
        r"takes no argument 'text', 'index'.*forward=lambda model, batch: model\(values=batch\['values'\]\), "
        r"target=lambda batch: batch\['labels'\]"
    )
    with pytest.raises(ValueError, match=lines):
        cx.EmpiricalRisk(model, CE, data).value()
    risk = cx.EmpiricalRisk(
        model,
        CE,
        data,
        forward=lambda model, batch: model(values=batch["values"]),
        target=lambda batch: batch["labels"],
    )
    check_against(risk, Oracle(model.layer, CE, X, Y))


def test_labels_of_another_name_are_named_in_the_lines():
    with pytest.raises(
        ValueError, match=r"no argument 'label'.*target=lambda batch: batch\['label'\]"
    ):
        cx.EmpiricalRisk(Named().double(), CE, {"values": X, "label": Y}).value()


def test_a_type_error_of_the_models_own_is_not_hidden():
    class Failing(Named):
        def forward(self, values):
            return self.layer(values) + "text"

    with pytest.raises(TypeError, match="unsupported operand"):
        cx.EmpiricalRisk(Failing().double(), CE, {"values": X, "labels": Y}).value()


# ---------------------------------------------------------------------- lists of single samples


@pytest.mark.parametrize(
    "samples, loss, outputs",
    [
        ([(x, int(y)) for x, y in zip(X, Y, strict=True)], CE, 3),
        (list(zip(X, Y, strict=True)), CE, 3),
        (list(zip(X, torch.randn(6, 3).double(), strict=True)), nn.MSELoss(), 3),
        ([(x, x) for x in X], nn.MSELoss(), 4),
        ([(x, (x > 0).double()) for x in X], nn.BCEWithLogitsLoss(), 4),
        ([{"input": x, "labels": x[:3]} for x in X], nn.MSELoss(), 3),
        ([(x, float(x[0])) for x in X], nn.MSELoss(), 1),
    ],
    ids=["int", "0-d", "mse", "as many outputs as inputs", "bce", "mapping", "float"],
)
def test_a_list_of_single_samples_is_refused_and_a_loader_of_it_is_taken(samples, loss, outputs):
    model = network(4, 5, outputs)
    if isinstance(samples[0], dict):
        model = ByName(model)
    with pytest.raises((ValueError, TypeError), match="single samples make batches: DataLoader"):
        cx.per_sample_gradient_norms(model, loss, samples)
    if isinstance(samples[0], tuple) and not isinstance(samples[0][1], float):
        norms = cx.per_sample_gradient_norms(model, loss, DataLoader(samples, batch_size=4))
        x, y = (torch.stack([torch.as_tensor(s[i]) for s in samples]) for i in (0, 1))
        assert_close(norms, Oracle(model, loss, x, y).sample_gradients().norm(dim=1))


class ByName(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, input):
        return self.inside(input)


def test_a_model_that_takes_the_first_feature_alone_is_asked_for_one_row():
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4).double())

        def forward(self, x):
            return self.weight * x.sum(-1, keepdim=True)

    samples = [(x, x) for x in X]
    with pytest.raises(ValueError, match="single samples make batches: DataLoader"):
        cx.per_sample_gradient_norms(Spread(), nn.MSELoss(), samples)
    assert len(cx.per_sample_gradient_norms(Spread(), nn.MSELoss(), (X, X))) == 6


def test_one_number_for_each_sample_is_no_list_of_single_samples():
    class Curve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(1, 5, 1)

        def forward(self, t):
            assert t.ndim == 1
            return self.layers(t.unsqueeze(1)).squeeze(1)

    model, t = Curve(), X[:, 0].contiguous()
    y = t.sin()
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), [(t[:2], y[:2]), (t[2:], y[2:])])
    check_against(risk, Oracle(model, nn.MSELoss(), t, y))


# ---------------------------------------------------------------------- labels that are not shifted


def hugging_face(kind: str, **sizes: int):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=11, **sizes)
    return transformers, config


def bert_of_tokens():
    transformers, config = hugging_face(
        "Bert", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return transformers.BertForTokenClassification(config).eval()


def t5():
    transformers, config = hugging_face(
        "T5", d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def bart():
    transformers, config = hugging_face(
        "Bart",
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
    )
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("build", [bert_of_tokens, t5, bart])
def test_labels_that_are_not_shifted_take_the_loss_that_the_error_names(build):
    model = build()
    classes = 2 if build is bert_of_tokens else 11
    labels = torch.randint(classes, (3, 5))
    labels[:, -1] = -100
    batch = {"input_ids": torch.randint(3, 11, (3, 5)), "labels": labels}
    named = (
        r"nn.CrossEntropyLoss\(\).*classes moved to dimension 1: "
        r"forward=lambda model, batch: model\(\*\*batch\).logits.transpose\(1, 2\)"
    )
    with pytest.raises(ValueError, match=f"CausalLMLoss shifts the labels.*not shifted.*{named}"):
        cx.EmpiricalRisk(model, cx.CausalLMLoss(), batch)
    if build is bert_of_tokens:
        with pytest.raises(ValueError, match=f"token classifiers.*{named}"):
            cx.EmpiricalRisk(model, CE, batch).value()
    else:
        with pytest.raises(
            ValueError, match=r"decoder_input_ids from the labels.*model\(\*\*batch\)"
        ):
            cx.EmpiricalRisk(model, CE, batch).value()
    risk = cx.EmpiricalRisk(
        model,
        CE,
        [{k: v[:1] for k, v in batch.items()}, {k: v[1:] for k, v in batch.items()}],
        forward=lambda model, batch: model(**batch).logits.transpose(1, 2),
        target=lambda batch: batch["labels"],
    )
    theirs = model(**batch).loss
    assert risk.value() == pytest.approx(float(theirs.detach()), rel=1e-5)
    expected = torch.autograd.grad(theirs, [p for p in model.parameters()], allow_unused=True)
    flat = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(expected, model.parameters(), strict=True)
    ]
    assert_close(risk.gradient(), torch.cat([g.flatten() for g in flat]), tol=1e-5)


# ---------------------------------------------------------------------- masked classes, missing labels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_masked_classes_are_refused_with_a_line_that_gives_the_same_softmax(dtype):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, x):
            mask = torch.tensor([False, True, False, True, False])
            return self.layer(x).masked_fill(mask, -torch.inf)

    model, y = Masked().to(dtype), torch.tensor([0, 2, 4, 0, 2, 4])
    large = 1e4 if dtype is torch.float16 else 1e9
    lines = {1e4: "-1e4", 1e9: "-1e9"}[large]
    with pytest.raises(ValueError, match=rf"masked_fill\(mask, {lines}\).*clamp\(min={lines}\)"):
        cx.EmpiricalRisk(model, CE, (X.to(dtype), y)).value()
    if dtype is torch.float16:
        return
    risk = cx.EmpiricalRisk(
        model,
        CE,
        (X.to(dtype), y),
        forward=lambda model, batch: model(batch[0]).clamp(min=-large),
        target=lambda batch: batch[1],
    )
    kept = nn.Linear(4, 3).double()  # the classes that are left
    kept.load_state_dict({k: v[::2].double() for k, v in model.layer.state_dict().items()})
    oracle = Oracle(kept, CE, X.to(dtype).double(), y // 2)
    rows = torch.cat([torch.arange(20).view(5, 4)[::2].flatten(), 20 + torch.arange(5)[::2]])
    tol = 1e-5 if dtype is torch.float32 else 1e-10
    for got, expected in (
        (risk.hessian().to_dense(), oracle.hvp(torch.eye(oracle.size).double())),
        (risk.ggn().to_dense(), oracle.ggn()),
        (risk.empirical_fisher().to_dense(), oracle.empirical_fisher()),
    ):
        assert_close(got[rows][:, rows].double(), expected, tol=tol)
        left = torch.ones(25, dtype=torch.bool)
        left[rows] = False
        assert not got[left].any() and not got[:, left].any()


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_missing_labels_are_refused_with_lines_that_skip_them(kind):
    y = torch.rand(6, 3).double()
    y[0, 1] = y[3] = y[5, 2] = float("nan")
    model = network(4, 5, 3)
    plain = nn.MSELoss() if kind == "mse" else nn.BCEWithLogitsLoss()
    lines = r"\(x, y.nan_to_num\(\), ~y.isnan\(\)\).*torch.stack\(batch\[1:\], -1\)"
    with pytest.raises(ValueError, match=lines):
        cx.EmpiricalRisk(model, plain, (X, y)).value()

    def skipping(output, target):
        each = F.mse_loss if kind == "mse" else F.binary_cross_entropy_with_logits
        return (each(output, target[..., 0], reduction="none") * target[..., 1]).sum()

    def observed(output, target):
        there = ~y.isnan()
        each = F.mse_loss if kind == "mse" else F.binary_cross_entropy_with_logits
        return each(output[there], y[there], reduction="sum")

    risk = cx.EmpiricalRisk(
        model,
        skipping,
        (X, y.nan_to_num(), ~y.isnan()),
        forward=lambda model, batch: model(batch[0]),
        target=lambda batch: torch.stack(batch[1:], -1),
        reduction="sum",
    )
    observed.reduction = "sum"
    oracle = Oracle(model, observed, X, y)
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian().to_dense(), oracle.hvp(torch.eye(oracle.size).double()))
    assert_close(risk.ggn().to_dense(), oracle.ggn())
    assert risk.empirical_fisher().gradient_norms()[3] == 0


# ---------------------------------------------------------------------- KL divergence


@pytest.mark.parametrize("log_target", [False, True])
def test_the_kl_divergence_by_sample_is_its_definition_and_has_no_fisher_matrix(log_target):
    model = nn.Sequential(*network(4, 5, 3), nn.LogSoftmax(1)).double()
    t = torch.randn(6, 3).double().softmax(1)
    loss = nn.KLDivLoss(reduction="batchmean", log_target=log_target)
    y = t.log() if log_target else t
    risk = cx.EmpiricalRisk(model, loss, [(X[:2], y[:2]), (X[2:], y[2:])])
    oracle, alike = Oracle(model, loss, X, y), Oracle(model[:-1], CE, X, t)
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian().to_dense(), oracle.hvp(torch.eye(oracle.size).double()))
    # that of cross-entropy on the logits with probabilities, which the error names
    assert_close(risk.gradient(), alike.gradient())
    assert_close(risk.hessian().to_dense(), alike.hvp(torch.eye(oracle.size).double()))
    with pytest.raises(
        ValueError, match=r"KLDivLoss is linear.*nn.CrossEntropyLoss\(\) on the logits"
    ):
        risk.fisher()


# ---------------------------------------------------------------------- one-shot iterators


def stream():
    yield X[:4], Y[:4]
    yield X[4:], Y[4:]


@pytest.mark.parametrize(
    "function",
    [
        cx.fisher_diagonal,
        lambda *a, **k: cx.fisher_diagonal(*a, kind="mc", seed=3, **k),
        lambda *a, **k: cx.fisher_diagonal(*a, kind="exact", **k),
        cx.ggn_diagonal,
        cx.per_sample_gradient_norms,
    ],
    ids=["empirical", "mc", "exact", "ggn", "norms"],
)
@pytest.mark.parametrize(
    "build", [stream, lambda: iter(list(stream())), lambda: map(tuple, stream())]
)
def test_what_makes_one_pass_takes_an_iterator_and_reads_it_once(function, build):
    model = network(4, 5, 3)
    iterator = build()
    found, expected = function(model, CE, iterator), function(model, CE, (X, Y))
    for one, other in zip(
        *(([v] if torch.is_tensor(v) else v.values()) for v in (found, expected)), strict=True
    ):
        assert_close(one, other)
    assert next(iterator, None) is None
    with pytest.raises(ValueError, match="no batch has a sample"):
        function(model, CE, iterator)


def test_an_iterator_without_end_is_read_as_far_as_it_is_asked_for():
    def endless():
        while True:
            yield X, Y

    model = network(4, 3)
    norms = cx.per_sample_gradient_norms(model, CE, endless(), max_batches=2)
    assert norms.shape == (12,)


def test_a_second_pass_over_an_iterator_is_an_error_and_operators_refuse_it_at_once():
    from curvext.data import Batches, for_one_pass

    batches = Batches(for_one_pass(stream()))
    assert len(list(batches)) == 2
    with pytest.raises(TypeError, match="second pass over a one-shot iterator.*list"):
        list(batches)
    for operator in (cx.EmpiricalRisk, cx.HessianOperator, cx.KFACOperator):
        with pytest.raises(
            TypeError, match=r"one-shot generator.*every product reads.*fisher_diagonal"
        ):
            operator(network(4, 3), CE, stream())
