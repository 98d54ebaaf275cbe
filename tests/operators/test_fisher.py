"""F is an expectation over the model's own labels; the Monte-Carlo F is an unbiased draw of it."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_close
from models import CLASSIFIERS
from problems import LOSSES, pose, pose_language_model

import curvext as cx

LIKELY = [
    "ce",
    "ce_minus_100",
    "ce_weight",
    "ce_smooth",
    "ce_weight_ignore_smooth",
    "ce_probabilities",
    "mse",
    "bce",
]


def fisher_by_labels(posed):
    """Σ over labels of p(y) ∇log p(y) ∇log p(y)ᵀ, for the losses without weights, in units of L."""
    f = posed.oracle.output
    J = posed.oracle.jacobian()
    total = torch.zeros(J.shape[1], J.shape[1]).to(J)
    name = type(posed.loss).__name__
    J = J.view(*f.shape, -1)
    if name == "CrossEntropyLoss":
        kept = posed.y != posed.loss.ignore_index
        scores = J.movedim(1, -2).reshape(-1, f.shape[1], J.shape[-1])[kept.flatten()]
        p = torch.softmax(f.detach(), 1).movedim(1, -1).reshape(-1, f.shape[1])[kept.flatten()]
        for q, jac in zip(p, scores, strict=True):
            for label in range(f.shape[1]):
                score = jac[label] - q @ jac
                total += q[label] * torch.outer(score, score)
        return total / kept.sum()
    for z, jac in zip(f.detach().flatten(), J.reshape(f.numel(), -1), strict=True):
        p = torch.sigmoid(z)
        # Bernoulli: Σ_y p(y) (y − p)²; Gaussian of variance 1/2: E (2 (y − f))² = 2
        second = (p * (1 - p) ** 2 + (1 - p) * p**2) if name == "BCEWithLogitsLoss" else 2.0
        total += second * torch.outer(jac, jac)
    return total / f.numel()


@pytest.mark.parametrize("loss", ["ce", "ce_minus_100", "mse", "bce"])
@pytest.mark.parametrize("name", ["mlp", "image_logits", "sequence_logits"])
def test_fisher_is_the_expectation_over_the_model_s_labels(name, loss, device):
    posed = pose(name, loss, device=device)
    V = posed.vectors()
    F = cx.FisherOperator(posed.model, posed.loss, posed.cut(2, 3))
    assert_close(F @ V, fisher_by_labels(posed) @ V)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LIKELY)
def test_fisher_equals_ggn_where_there_is_a_likelihood(loss, reduction, device):
    posed = pose("sequence_logits", loss, reduction, device)
    V = posed.vectors()
    assert_close(
        cx.EmpiricalRisk(posed.model, posed.loss, posed.cut(2, 3)).fisher() @ V,
        posed.oracle.ggn() @ V,
    )


@pytest.mark.parametrize("kind", [cx.FisherOperator, cx.MCFisherOperator])
@pytest.mark.parametrize("loss", ["bce_pos_weight", "custom", "smooth_l1"])
def test_a_loss_without_likelihood_is_refused_and_ggn_named(loss, kind, device):
    posed = pose("mlp", loss, device=device)
    with pytest.raises(ValueError, match="no Fisher matrix; GGNOperator"):
        kind(posed.model, posed.loss, posed.data)


@pytest.mark.parametrize("loss", [*LOSSES])
@pytest.mark.parametrize("name", ["mlp", "image_logits", "tied", "cnn"])
def test_ggn_diagonal_and_trace_are_exact(name, loss, device):
    posed = pose(name, loss, device=device)
    G = cx.GGNOperator(posed.model, posed.loss, posed.cut(2, 3))
    expected = posed.oracle.ggn().diagonal()
    assert_close(G.diagonal(), expected)
    assert_close(G.trace(), expected.sum())
    named = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    assert_close(torch.cat([d.flatten() for d in named.values()]), expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_ggn_diagonal_is_exact_for_every_network(name, device):
    posed = pose(name, "ce", device=device)
    diagonal = cx.GGNOperator(posed.model, posed.loss, posed.data).diagonal()
    assert_close(diagonal, posed.oracle.ggn().diagonal(), name)


def test_ggn_diagonal_of_a_language_model_is_exact(device):
    posed = pose_language_model(device)
    G = cx.GGNOperator(posed.model, posed.loss, posed.cut(1, 2))
    assert_close(G.diagonal(), posed.oracle.ggn().diagonal())


# ---------------------------------------------------------------------- Monte Carlo


@pytest.mark.parametrize("loss", LIKELY)
@pytest.mark.parametrize("name", ["mlp", "image_logits"])
def test_monte_carlo_labels_do_not_depend_on_the_batches(name, loss, device):
    posed = pose(name, loss, device=device)
    V = posed.vectors()

    def drawn(*sizes):
        return cx.MCFisherOperator(posed.model, posed.loss, posed.cut(*sizes), samples=2, seed=5)

    whole = drawn(5)
    for sizes in ((1, 4), (2, 2, 1), (1, 1, 1, 1, 1)):
        assert_close(drawn(*sizes) @ V, whole @ V, str(sizes))
        assert_close(drawn(*sizes).diagonal(), whole.diagonal(), str(sizes))
    assert_close(whole.trace(), whole.diagonal().sum())
    assert torch.equal(whole @ V, drawn(5) @ V)
    other = cx.MCFisherOperator(posed.model, posed.loss, posed.data, samples=2, seed=6)
    assert not torch.equal(other @ V, whole @ V)


def test_monte_carlo_diagonal_is_that_of_the_operator_of_the_same_seed(device):
    posed = pose("mlp", device=device)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    for seed in (0, 7):
        named = cx.fisher_diagonal(
            posed.model, posed.loss, posed.cut(2, 3), kind="mc", samples=2, seed=seed
        )
        flat = torch.cat([d.flatten() for d in named.values()])
        assert_close(flat, risk.mc_fisher(samples=2, seed=seed).to_dense().diagonal())


@pytest.mark.parametrize("loss", LIKELY)
@pytest.mark.parametrize("name", ["linear", "image_logits"])
def test_monte_carlo_fisher_is_unbiased_to_its_standard_error(name, loss, device):
    posed = pose(name, loss, device=device)
    v = posed.vectors(1)[:, 0]
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    draws = torch.stack([v @ (risk.mc_fisher(samples=20, seed=seed) @ v) for seed in range(40)])
    exact = v @ posed.oracle.ggn() @ v
    error = draws.std() / math.sqrt(len(draws))
    assert error > 0 and error < 0.2 * exact
    assert (draws.mean() - exact).abs() < 4 * error, f"{draws.mean()} is not {exact} ± {error}"


def test_monte_carlo_labels_leave_the_generator_alone(device):
    posed = pose("mlp", device=device)
    state = torch.get_rng_state()
    M = cx.MCFisherOperator(posed.model, posed.loss, posed.data, samples=2)
    M @ posed.vectors()[:, 0]
    M.diagonal()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("samples", [0, -1, 1.5, None])
def test_a_number_of_draws_that_is_none_is_refused(samples, device):
    posed = pose("mlp", device=device)
    with pytest.raises(
        ValueError, match="MCFisherOperator: samples: expected an integer of at least 1"
    ):
        cx.MCFisherOperator(posed.model, posed.loss, posed.data, samples=samples)
