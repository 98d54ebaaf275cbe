"""risk.check() agrees where the library is right, and names the quantity and the parameter where it is not."""

from __future__ import annotations

import math
import re
import sys
import time
from dataclasses import replace

import pytest
import torch
from models import Model
from oracles import Oracle
from problems import LOSSES, pose, pose_language_model
from torch import nn

import curvext as cx
from curvext.__main__ import main
from curvext.check import quantities
from curvext.check.comparison import Judge
from curvext.check.plain_loss import PlainLoss
from curvext.check.quantities import Quantity
from curvext.gradients.outer_product import OuterGradient
from curvext.losses import cross_entropy
from curvext.operations.table import OPERATIONS
from curvext.problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")

QUANTITIES = [
    "value", "gradient", "H v", "G v", "R v", "F v", "F_mc v", "F_emp v", "‖g_n‖", "tr F_emp",
    "diag F_emp", "diag G", "diag F_mc",
]  # fmt: skip


def mlp(samples=8, dtype=torch.float64):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    return model, (torch.randn(samples, 3).to(dtype), torch.randint(3, (samples,)))


def risk_of(samples=8, **options):
    model, data = mlp(samples)
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, **options)


def differing(result):
    return {row.quantity for row in result.rows if row.verdict == "differs"}


# ---------------------------------------------------------------------- where the library is right


@pytest.mark.parametrize(
    "name", ["conv2d", "encoder_layer", "lstm", "tied", "attention_over_samples", "weight_norm"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_quantity_of_a_network_agrees(name, dtype):
    posed = pose(name, dtype=dtype)
    result = cx.EmpiricalRisk(posed.model, posed.loss, posed.data).check()
    assert result.ok, result
    assert [row.quantity for row in result.rows] == QUANTITIES
    assert {row.verdict for row in result.rows} == {"agrees"}, result
    bound = torch.finfo(dtype).eps ** (2 / 3)
    assert all(row.bound == bound and 0 <= row.error <= bound for row in result.rows)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_over_batches_of_unequal_size_agree(loss, reduction):
    posed = pose("mlp", loss, reduction)
    result = cx.EmpiricalRisk(posed.model, posed.loss, posed.cut(1, 3, 1)).check()
    assert result.ok, result
    refused = {row.quantity for row in result.rows if row.verdict == "refused"}
    likelihood = loss not in ("bce_pos_weight", "custom", "smooth_l1")
    assert refused == (set() if likelihood else {"F v", "F_mc v", "diag F_mc"})


@pytest.mark.parametrize(
    "options", [{}, {"chunk_outputs": 4}, {"cache": False}, {"params": "*mlp*"}]
)
def test_a_language_model_agrees(options):
    posed = pose_language_model()
    assert cx.EmpiricalRisk(posed.model, posed.loss, posed.data, **options).check().ok


def test_reduced_precision_has_the_bound_of_its_digits():
    posed = pose("mlp", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = cx.EmpiricalRisk(posed.model, posed.loss, posed.data).check()
    assert result.ok and result.rows[0].bound == torch.finfo(torch.bfloat16).eps ** (2 / 3)


def test_samples_are_looked_at_in_part_where_there_are_more():
    risk = risk_of(samples=40)
    result = risk.check(samples=4)
    assert result.ok and {row.verdict for row in result.rows} == {"agrees"}
    assert str(result) == str(risk.check(samples=4)), "the same seed looks at the same"


def test_a_saturated_softmax_is_no_disagreement():
    """1 − p is rounding alone there, and PyTorch's own H_ℓ with it."""
    model, (x, _) = mlp()
    with torch.no_grad():
        model[2].weight *= 3e4
    labels = model(x).argmax(1)
    result = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, labels)).check()
    assert float(model(x).detach().softmax(1).max(1).values.min()) > 1 - 1e-6
    assert result.ok, result


def test_rounding_of_plain_pytorch_in_float32_is_settled_in_float64():
    posed = pose(
        "scalar_parameter", dtype=torch.float32
    )  # a bias of all classes, by which nothing changes
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    result = risk.check()
    assert result.ok and "in float32 that is off by" in result["G v"].words, result
    assert {row.words for row in risk.check(dtype=torch.float64).rows} == {""}


# ---------------------------------------------------------------------- the plain side by itself


def test_plain_pytorch_is_the_oracle_of_the_tests():
    posed = pose("attention_over_samples", "ce_weight_ignore_smooth")
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    found = {}

    class Remembering(quantities.Quantities):
        def all(self):
            found["V"] = self._V
            found.update({q.name: q.plain() for q in super().all()})
            return super().all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curvext.check.comparison.Quantities", Remembering)
        assert risk.check().ok
    oracle: Oracle = posed.oracle
    gradients = oracle.sample_gradients()
    for name, truth in {
        "H v": oracle.hvp(found["V"]),
        "G v": oracle.ggn() @ found["V"],
        "F_emp v": oracle.empirical_fisher() @ found["V"],
        "‖g_n‖": gradients.norm(dim=1),
        "diag F_emp": oracle.empirical_fisher().diagonal(),
        "tr F_emp": oracle.empirical_fisher().trace().view(1),
    }.items():
        torch.testing.assert_close(found[name], truth, rtol=1e-12, atol=1e-13)


def test_a_loss_of_pytorchs_counts_its_divisor_itself():
    output, target = torch.randn(5, 3), torch.tensor([0, 1, -100, 2, 1])
    weight = torch.tensor([0.5, 2.0, 1.0])
    divisor = PlainLoss(nn.CrossEntropyLoss(weight), "mean")(output, target)[1]
    assert divisor == pytest.approx(0.5 + 2 + 1 + 2)
    assert PlainLoss(nn.MSELoss(), "mean")(output, output)[1] == pytest.approx(15)
    assert PlainLoss(lambda f, y: f.sum(), "mean")(output, target)[1] == 5
    nothing = torch.full((5,), -100)
    assert PlainLoss(nn.CrossEntropyLoss(), "mean")(output, nothing)[1] == 0


# ---------------------------------------------------------------------- where it is not


def test_a_wrong_tangent_rule_is_reported_with_its_parameter(monkeypatch):
    right = OPERATIONS["TanhBackward0"]
    wrong = replace(right, tangent=lambda node, x: right.tangent(node, x) * 1.001)
    monkeypatch.setitem(OPERATIONS, "TanhBackward0", wrong)
    result = risk_of().check()
    assert not result.ok and differing(result) == {"G v", "F v", "F_mc v"}
    assert "G v, F v, F_mc v WRONG" in str(result)
    assert 1e-5 < result["G v"].error < 1e-2


def test_a_wrong_rule_of_squares_is_reported_with_its_parameter(monkeypatch):
    right = OuterGradient.square

    def wrong(self):
        return right(self) * (1.01 if self.a.shape[-1] == 3 else 1)  # the first weight alone

    monkeypatch.setattr(OuterGradient, "square", wrong)
    for samples in (8, 40):
        row = risk_of(samples).check()["diag F_emp"]
        assert (row.verdict, row.worst) == ("differs", "0.weight"), row
        assert row.error == pytest.approx(0.01, rel=0.5)


def test_a_wrong_rule_of_norms_is_reported_with_its_parameter(monkeypatch):
    right = OuterGradient.norm

    def wrong(self):
        return right(self) * (1.01 if self.a.shape[-1] == 4 else 1)  # the last weight alone

    monkeypatch.setattr(OuterGradient, "norm", wrong)
    result = risk_of(40).check()
    assert differing(result) == {"‖g_n‖"}, "of many samples the trace is compared with the norms"
    assert result["‖g_n‖"].worst == "2.weight"
    assert differing(risk_of(8).check()) == {"‖g_n‖", "tr F_emp"}


def test_a_wrong_scale_is_reported_everywhere(monkeypatch):
    right = Problem.mean_scale
    monkeypatch.setattr(Problem, "mean_scale", lambda self: right(self) * 1.001)
    result = risk_of().check()
    assert differing(result) == set(QUANTITIES)
    assert result["value"].error == pytest.approx(1e-3, rel=1e-6)


def test_a_wrong_output_hessian_is_reported(monkeypatch):
    right = cross_entropy.softmax_hessian_mm

    def wrong(z, u, w, dim=-1):
        return right(z, u, w, dim=dim) * 1.001

    monkeypatch.setattr(cross_entropy, "softmax_hessian_mm", wrong)
    assert differing(risk_of().check()) == {"H v", "G v", "F v"}


def test_nan_is_a_disagreement():
    column = torch.tensor([[1.0], [math.nan]], dtype=torch.float64)
    quantity = Quantity("q", "", lambda: column, lambda: column, [("a", 1), ("b", 1)], "")
    row = Judge(torch.finfo(torch.float64).eps).row(quantity, column, torch.ones_like(column), 0.0)
    assert (row.verdict, row.worst) == ("differs", "b") and math.isnan(row.error)


def test_a_crash_is_a_fault_and_the_rest_is_compared(monkeypatch):
    def broken(self):
        raise KeyError("nowhere")

    monkeypatch.setattr(OuterGradient, "square", broken)
    result = risk_of().check()
    assert not result.ok and result["diag F_emp"].verdict == "failed"
    assert result["diag F_emp"].words == "KeyError: 'nowhere'"
    assert result["‖g_n‖"].verdict == "agrees"


@pytest.mark.parametrize(
    "ours, terms, agrees",
    [
        ([1.0, 1e-20], 0.0, True),  # the second part is rounding of the first
        ([1.0, 1e-9], 0.0, False),
        ([1.0, 1e-9], 1e9, True),  # and so is this of terms that cancel
        ([1.0 + 1e-9, 0.0], 0.0, False),
        ([1.0 + 1e-12, 0.0], 0.0, True),
    ],
)
def test_a_part_counts_beside_the_whole(ours, terms, agrees):
    column = torch.tensor(ours, dtype=torch.float64).unsqueeze(1)
    truth = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    quantity = Quantity("q", "", lambda: column, lambda: truth, [("a", 1), ("b", 1)], "")
    row = Judge(torch.finfo(torch.float64).eps).row(quantity, column, truth, terms)
    assert (row.verdict == "agrees") is agrees, row


# ---------------------------------------------------------------------- refusals and what is left out


def test_a_refusal_is_a_row_with_its_words_and_no_disagreement():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(10, 4), nn.Linear(4, 3)

        def forward(self, words):
            return self.head(self.bag(words))

    data = (torch.randint(10, (6, 5)), torch.randint(3, (6,)))
    result = cx.EmpiricalRisk(Bag().double(), nn.CrossEntropyLoss(), data).check()
    assert result.ok
    assert result["H v"].verdict == "refused" and math.isnan(result["H v"].error)
    assert "EmbeddingBag has no second derivative" in result["H v"].words
    assert "H v refused: EmbeddingBag has no second derivative" in str(result)


def test_a_risk_without_a_value_has_no_check():
    model, data = mlp()
    random = nn.Sequential(model, nn.Dropout(0.5))
    with pytest.raises(RuntimeError, match="is in training mode, so the risk is random"):
        cx.EmpiricalRisk(random, nn.CrossEntropyLoss(), data).check()


def test_what_would_take_too_long_is_left_out_and_said():
    model = nn.Linear(3, 65).double()
    wide = cx.EmpiricalRisk(
        model, nn.MSELoss(), (torch.randn(2, 3).double(), torch.randn(2, 65).double())
    )
    row = wide.check()["diag G"]
    assert row.verdict == "unchecked" and "for each of 65 outputs" in row.words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "_ONE_BY_ONE", 4)
        posed = pose(next(n for n in ("baddbmm", "bmm_of_experts", "einsum") if _general(n)))
        result = cx.EmpiricalRisk(posed.model, posed.loss, posed.data).check()
    assert result.ok and result["‖g_n‖"].verdict == "unchecked"
    assert "takes one backward pass for each of 5 samples" in result["‖g_n‖"].words


def _general(name):
    posed = pose(name)
    return "general" in cx.EmpiricalRisk(posed.model, posed.loss, posed.data).explain()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"samples": 0}, "check: samples: expected an integer of at least 1, got 0"),
        ({"vectors": 1.5}, "check: vectors: expected an integer of at least 1, got 1.5"),
        ({"seed": "x"}, "check: seed: expected an integer, got 'x'"),
        (
            {"dtype": torch.float16},
            "check: dtype: expected None or torch.float64, got torch.float16",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        risk_of().check(**options)


# ---------------------------------------------------------------------- manners


def test_the_model_is_left_as_found():
    model = Model(
        lambda s, x: s.b(torch.tanh(s.norm(s.a(x)))),
        a=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), b=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    model.a.bias.requires_grad_(False)
    hook = model.b.weight.register_hook(lambda g: g * 3)
    data = (torch.randn(8, 3), torch.randint(3, (8,)))
    nn.CrossEntropyLoss()(model(data[0]), data[1]).backward()
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    drawn, x = torch.get_rng_state(), data[0].clone()
    assert cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data).check(dtype=torch.float64).ok
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(data[0], x)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert not model.a.bias.requires_grad and model.a.weight.requires_grad
    assert not model.training and hook.id in model.b.weight._backward_hooks


def test_a_row_is_found_by_its_name():
    result = risk_of().check()
    assert isinstance(result, cx.CheckResult) and isinstance(result["H v"], cx.CheckRow)
    assert list(result) == list(result.rows)
    with pytest.raises(KeyError, match="there are value, gradient"):
        result["h v"]


def test_the_table_has_a_line_for_each_quantity():
    lines = str(risk_of().check()).splitlines()
    assert lines[0] == "13 quantities compared with plain PyTorch: all agree"
    assert [line.split("  ")[1] for line in lines[2:]] == QUANTITIES


def test_the_demo_is_checked_in_less_than_ten_seconds(capsys):
    pytest.importorskip("sklearn")
    from curvext.report.demo import digits

    risk = digits()
    begin = time.process_time()
    assert risk.check().ok
    assert time.process_time() - begin < 10


# ---------------------------------------------------------------------- the command

USERS_MODULE = """
import torch
import curvext as cx

def risk():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    data = torch.randn(12, 3).double(), torch.randint(2, (12,))
    return cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "checked.py").write_text(USERS_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "checked", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_command_prints_the_table(users_module, capsys):
    main(["check", "checked:risk", "--samples", "3", "--vectors", "1", "--seed", "5"])
    out = capsys.readouterr().out
    assert out.startswith("13 quantities compared with plain PyTorch: all agree\n")
    assert "tr F_emp" in out


def test_the_command_exits_with_1_on_a_disagreement(users_module, monkeypatch, capsys):
    monkeypatch.setattr(Problem, "outer_scale", lambda self: 1.0)
    with pytest.raises(SystemExit) as left:
        main(["check", "checked:risk"])
    assert left.value.code == 1 and "F_emp v, tr F_emp, diag F_emp WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["checked"], "curvext check: expected module:function, got 'checked'"),
        ([], "curvext check: expected either module:function or --demo"),
        (
            ["checked:risk", "--samples", "0"],
            "argument --samples: expected an integer of at least 1, got '0'",
        ),
    ],
)
def test_the_command_says_what_is_wrong_with_its_arguments(
    arguments, message, users_module, capsys
):
    with pytest.raises(SystemExit, match="2"):
        main(["check", *arguments])
    assert message in capsys.readouterr().err
