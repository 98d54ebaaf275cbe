"""Second-order steps against dense solves, and what they do to a loss."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from matrices import vector
from risks import classifier, flat
from torch import nn

import curvext as cx

STEPS = {
    "gauss_newton": lambda risk, damping, **o: cx.gauss_newton_step(risk, damping, **o),
    "exact": lambda risk, damping, **o: cx.natural_gradient_step(risk, damping, **o),
    "mc": lambda risk, damping, **o: cx.natural_gradient_step(
        risk, damping, kind="mc", samples=3, seed=4, **o
    ),
    "empirical": lambda risk, damping, **o: cx.natural_gradient_step(
        risk, damping, kind="empirical", **o
    ),
    "newton": lambda risk, damping, **o: cx.newton_step(risk, damping, **o),
}
MATRICES = {
    "gauss_newton": lambda risk: risk.ggn(),
    "exact": lambda risk: risk.fisher(),
    "mc": lambda risk: risk.mc_fisher(3, seed=4),
    "empirical": lambda risk: risk.empirical_fisher(),
    "newton": lambda risk: risk.hessian(),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_solves_its_damped_system_and_leaves_the_model_alone(kind, device):
    risk = classifier(device)
    before, damping = flat(risk), 1.0  # H + 1 is positive definite here
    step = STEPS[kind](risk, damping)
    dense = MATRICES[kind](risk).to_dense()
    eye = torch.eye(len(dense), dtype=dense.dtype, device=device)
    expected = torch.linalg.solve(dense + damping * eye, -risk.gradient())
    assert_close(step.step, expected, tol=1e-9)
    model = -risk.gradient() @ expected - expected @ dense @ expected / 2
    assert abs(step.predicted_reduction - float(model)) < 1e-9 * abs(float(model))
    assert step.value == risk.value() and step.damping == damping
    assert torch.equal(flat(risk), before)
    assert (step.cg is None) == (kind == "empirical")


@pytest.mark.parametrize("kind", STEPS)
def test_a_small_step_lowers_the_loss_as_much_as_promised(kind):
    risk = classifier()
    step = STEPS[kind](risk, 100.0)
    cx.take_step(risk, step.step)
    # with so much damping the step is short, and the first order is all
    assert risk.value() < step.value
    assert abs(step.ratio(risk.value()) - 1) < 0.05


def test_newton_solves_a_quadratic_in_one_step(device):
    model = nn.Linear(4, 2).to(device, torch.float64)
    data = (vector(20, 4).to(device), vector(20, 2, seed=5).to(device))
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), data)
    step = cx.newton_step(risk)
    cx.take_step(risk, step.step)
    assert abs(step.ratio(risk.value()) - 1) < 1e-9
    assert float(risk.gradient().norm()) < 1e-9


def test_newton_meets_negative_curvature_and_says_how_much_damping_takes_it_away():
    risk = classifier()
    smallest = float(torch.linalg.eigvalsh(risk.hessian().to_dense())[0])
    assert smallest < -1e-3
    step = cx.newton_step(risk)
    assert step.cg.negative_curvature is not None
    assert float(step.step @ risk.gradient()) <= 0
    damping = step.damping
    for _ in range(30):
        damping = step.next_damping(step.value)
        step = cx.newton_step(risk, damping)
        if step.cg.converged:
            break
    assert step.cg.converged and damping < -20 * smallest
    assert step.predicted_reduction > 0


def test_levenberg_and_marquardt_move_the_damping():
    risk = classifier()
    step = cx.gauss_newton_step(risk, 0.3)
    promise = step.predicted_reduction
    assert promise > 0
    for share, factor in ((1.0, 2 / 3), (0.76, 2 / 3), (0.5, 1.0), (0.24, 3 / 2), (-1.0, 3 / 2)):
        assert step.next_damping(step.value - share * promise) == pytest.approx(0.3 * factor)
    assert step.next_damping(float("nan")) == pytest.approx(0.45)
    assert step.next_damping(float("inf")) == pytest.approx(0.45)


@pytest.mark.parametrize("kind", ["gauss_newton", "exact", "empirical"])
def test_training_with_the_rule_for_the_damping_gets_to_a_small_loss(kind):
    risk = classifier()
    start, damping = risk.value(), 1.0
    options = {} if kind == "empirical" else dict(tol=1e-2, maxiter=20)
    for _ in range(30):
        step = STEPS[kind](risk, damping, **options)
        cx.take_step(risk, step.step)
        if not risk.value() < step.value:
            cx.take_step(risk, step.step, -1.0)
            damping *= 3
        else:
            damping = step.next_damping(risk.value())
    assert risk.value() < start / 20


def test_float32_steps_are_float32(device):
    risk = classifier(device, torch.float32)
    for kind in STEPS:
        step = STEPS[kind](risk, 1.0).step
        assert step.dtype is torch.float32
        wide = STEPS[kind](classifier("cpu"), 1.0).step
        assert_close(step, wide, tol=1e-3)


def test_a_warm_start_and_a_preconditioner_are_passed_on():
    risk = classifier()
    plain = cx.gauss_newton_step(risk, 1e-2)
    warm = cx.gauss_newton_step(risk, 1e-2, x0=plain.step)
    diagonal = risk.empirical_fisher().diagonal() + 1e-2
    conditioned = cx.gauss_newton_step(risk, 1e-2, preconditioner=diagonal)
    assert warm.cg.iterations == 0
    assert_close(conditioned.step, plain.step, tol=1e-7)
    assert conditioned.cg.iterations != plain.cg.iterations
    assert cx.gauss_newton_step(risk, 1e-2, maxiter=3).cg.iterations == 3


def test_a_step_prints_itself():
    text = str(cx.gauss_newton_step(classifier(), 1e-2, maxiter=2))
    assert text.startswith("step of length") and "NOT converged" in text
    assert "conjugate" not in str(cx.natural_gradient_step(classifier(), kind="empirical"))


def test_a_step_moves_the_selected_parameters_alone(device):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).to(device, torch.float64)
    data = (vector(5, 3).to(device), vector(5, 1).to(device))
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), data, params="1.*")
    before, others = flat(risk), model[0].weight.clone()
    cx.take_step(risk, torch.ones(3, dtype=torch.float64, device=device), 0.5)
    assert_close(flat(risk), before + 0.5, tol=1e-15)
    assert torch.equal(model[0].weight, others)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda r: cx.natural_gradient_step(r, kind="F"), ValueError, "kind: expected one of 'exact', .* got 'F'"),
        (lambda r: cx.natural_gradient_step(r, kind="empirical", tol=0.1), ValueError, "tol: kind='empirical' is"),
        (lambda r: cx.natural_gradient_step(r, 0.0, kind="empirical"), ValueError, "damping: expected λ > 0"),
        (lambda r: cx.gauss_newton_step(r, -1.0), ValueError, "damping: expected a finite λ >= 0"),
        (lambda r: cx.take_step(r, torch.zeros(3)), ValueError, r"take_step: step: expected shape \[51\], got \[3\]"),
        (lambda r: cx.take_step(r, torch.full((51,), torch.nan)), ValueError, "step: contains nan or inf"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call(classifier())


def test_a_step_is_taken_as_the_step_functions_give_it():
    model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
    risk = cx.EmpiricalRisk(model, loss, (torch.eye(2).double(), torch.ones(2, 1).double()))
    step, before = cx.newton_step(risk), model.weight.detach().clone()
    cx.take_step(risk, step, length=0.5)
    moved = (model.weight.detach() - before).reshape(-1)
    torch.testing.assert_close(moved, step.step / 2, rtol=0, atol=1e-14)
