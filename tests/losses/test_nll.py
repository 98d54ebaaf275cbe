"""Negative log-likelihood of log-probabilities: its Fisher matrix, and where there is none."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from oracles import Oracle
from torch import Tensor, nn

import curvext as cx

WEIGHT = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)
LOSSES = {
    "plain": {},
    "ignored": {"ignore_index": 1},
    "weighted": {"weight": WEIGHT},
    "weighted, ignored": {"weight": WEIGHT, "ignore_index": 0},
}


def posed(positions: bool, log_softmax: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier of 7 samples, [N, 3], or [N, 3, 2] with two positions each."""
    head: list[nn.Module] = (
        [nn.Linear(5, 6), nn.Unflatten(1, (3, 2))] if positions else [nn.Linear(5, 3)]
    )
    last = [nn.LogSoftmax(1)] if log_softmax else []
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *head, *last).double()
    x = torch.randn(7, 4).double()
    y = torch.randint(3, (7, 2) if positions else (7,))
    y.view(-1)[:3] = torch.arange(3)
    return model, x, y


def fisher_by_definition(model: nn.Module, loss: nn.NLLLoss, x: Tensor, y: Tensor) -> Tensor:
    """(1/d) Σ_m w_m Σ_c p_mc ∇f_mc ∇f_mcᵀ: each label's score, weighted by its probability."""
    oracle = Oracle(model, loss, x, y)
    f = oracle.output.detach()
    weight = torch.ones(3).to(f) if loss.weight is None else loss.weight
    kept = y != loss.ignore_index
    w = torch.where(kept, weight[torch.where(kept, y, 0)], 0)
    J = oracle.jacobian()
    F = J.T @ ((w.unsqueeze(1) * f.exp()).reshape(-1, 1) * J)
    return F / w.sum() if loss.reduction == "mean" else F


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_its_fisher_matrix_is_that_of_the_labels_of_the_network(name, positions, reduction):
    model, x, y = posed(positions)
    loss = nn.NLLLoss(**LOSSES[name], reduction=reduction)
    risk = cx.EmpiricalRisk(model, loss, [(x[:2], y[:2]), (x[2:], y[2:])])
    oracle, expected = Oracle(model, loss, x, y), fisher_by_definition(model, loss, x, y)
    F = risk.fisher()
    assert_close(F.to_dense(), expected)
    assert_close(F.diagonal(), expected.diagonal())
    assert_close(risk.block_diagonal(kind="exact", blocks=[risk.space.names]).to_dense(), expected)
    assert_close(risk.kfac(kind="exact").trace(), risk.kfac(kind="exact").to_dense().trace())
    # what was so of any loss is so of this one
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian().to_dense(), oracle.hvp(torch.eye(oracle.size).double()))
    assert_close(risk.empirical_fisher().to_dense(), oracle.empirical_fisher())
    assert not risk.ggn().to_dense().any() and not risk.ggn().diagonal().any()
    assert not oracle.ggn().any()  # linear in its outputs


@pytest.mark.parametrize("name", LOSSES)
def test_its_drawn_labels_are_those_of_cross_entropy_on_the_logits(name):
    model, x, y = posed(positions=True)
    data = [(x[:2], y[:2]), (x[2:], y[2:])]
    logits = model[:-1]
    ours = cx.MCFisherOperator(model, nn.NLLLoss(**LOSSES[name]), data, samples=3, seed=5)
    theirs = cx.MCFisherOperator(
        logits, nn.CrossEntropyLoss(**LOSSES[name]), data, samples=3, seed=5
    )
    assert_close(ours.to_dense(), theirs.to_dense())
    assert_close(ours.diagonal(), theirs.diagonal())


@pytest.mark.parametrize("reduction, share", [("mean", 1 / 2), ("sum", 1.0)])
def test_the_empirical_fisher_at_labels_of_the_network_is_the_share_it_states(reduction, share):
    model, _, _ = posed(positions=True)
    x = torch.randn(20_000, 4).double()
    with torch.no_grad():
        p = model(x).exp().transpose(1, 2)
    y = torch.multinomial(p.reshape(-1, 3), 1).view(-1, 2)
    risk = cx.EmpiricalRisk(model, nn.NLLLoss(reduction=reduction), (x, y))
    assert risk.own_labels_ratio() == pytest.approx(share)
    ratio = float(risk.empirical_fisher().trace() / risk.fisher().trace())
    assert ratio == pytest.approx(share, rel=0.05)
    weighted = cx.EmpiricalRisk(model, nn.NLLLoss(WEIGHT), (x, y))
    assert weighted.own_labels_ratio() is None


@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_log_probabilities_in_reduced_precision_are_known_as_such(dtype, tol):
    model, x, y = posed(positions=False)
    low = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LogSoftmax(1)).to(dtype)
    low.load_state_dict(model.state_dict())
    model.load_state_dict(low.state_dict())
    x = x.to(dtype)
    found = cx.fisher_diagonal(low, nn.NLLLoss(), (x, y), kind="exact")
    expected = fisher_by_definition(model, nn.NLLLoss(), x.double(), y).diagonal()
    assert_close(torch.cat([d.flatten() for d in found.values()]), expected, tol=tol)


def test_a_compiled_product_and_the_check_agree():
    model, x, y = posed(positions=False)
    loss = nn.NLLLoss(WEIGHT)
    compiled = cx.FisherOperator(model, loss, (x, y), compile="aot_eager")
    assert_close(compiled.to_dense(), fisher_by_definition(model, loss, x, y))
    result = cx.EmpiricalRisk(model, loss, (x, y)).check()
    assert result.ok and "F v" in {row.quantity for row in result.rows}


@pytest.mark.parametrize("ask", ["product", "diagonal", "mc", "kfac"])
def test_an_output_that_is_no_log_probability_has_no_fisher_matrix(ask):
    model, x, y = posed(positions=False, log_softmax=False)
    risk = cx.EmpiricalRisk(model, nn.NLLLoss(), (x, y))
    asked = {
        "product": lambda: risk.fisher() @ torch.ones(risk.space.size).double(),
        "diagonal": lambda: risk.fisher().diagonal(),
        "mc": lambda: risk.mc_fisher().diagonal(),
        "kfac": lambda: risk.kfac(kind="exact").trace(),
    }[ask]
    with pytest.raises(
        ValueError, match=r"no log-probability.*no Fisher.*LogSoftmax\(1\).*CrossEntropyLoss\(\)"
    ):
        asked()
    assert torch.isfinite(risk.gradient()).all()  # it has a risk all the same


def test_probabilities_that_sum_to_one_a_little_off_are_refused():
    class Smoothed(nn.Sequential):
        def forward(self, x):
            return torch.log(super().forward(x).softmax(1) + 1e-4)

    model, x, y = posed(positions=False, log_softmax=False)
    with pytest.raises(ValueError, match=r"\|log Σ_c exp f_c\| is 0.0003"):
        cx.fisher_diagonal(Smoothed(*model), nn.NLLLoss(), (x, y), kind="exact")


def test_a_negative_class_weight_has_no_likelihood():
    model, x, y = posed(positions=False)
    loss = nn.NLLLoss(torch.tensor([1.0, -1.0, 0.5]).double())
    with pytest.raises(ValueError, match="NLLLoss with a negative class weight is not −log p"):
        cx.FisherOperator(model, loss, (x, y))


@pytest.mark.parametrize(
    "target, error, message",
    [
        (torch.rand(7, 3), ValueError, r"NLLLoss: output \[7, 3\] wants a target \[7\] of class"),
        (torch.zeros(7), TypeError, "NLLLoss: target has dtype torch.float32"),
        (torch.full((7,), 3), ValueError, r"NLLLoss: target has labels 3..3, the output has 3"),
        ("labels", TypeError, "NLLLoss: expected a tensor as target, got str"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(target, error, message):
    model, x, _ = posed(positions=False)
    with pytest.raises(error, match=message):
        cx.EmpiricalRisk(model, nn.NLLLoss(), (x, target)).gradient()
