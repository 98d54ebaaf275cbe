"""DFP: its formula, its invariants, and SciPy's own driver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import curvext as cx

optimize = pytest.importorskip("scipy.optimize")

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)


def quadratic(size=6):
    Q, _ = np.linalg.qr(RNG.standard_normal((size, size)))
    return Q @ np.diag(np.linspace(0.5, 9, size)) @ Q.T


@pytest.mark.parametrize("scale", [1.0, 0.3, "auto"])
@pytest.mark.parametrize("kind", ["hess", "inv_hess"])
def test_as_many_exact_steps_as_dimensions_give_the_hessian_of_a_quadratic(kind, scale):
    A = quadratic()
    estimate = cx.DFP(init_scale=scale)
    estimate.initialize(len(A), kind)
    x = RNG.standard_normal(len(A))
    for _ in range(len(A)):
        g = A @ x
        M = estimate.get_matrix()
        direction = -np.linalg.solve(M, g) if kind == "hess" else -M @ g
        s = -(g @ direction) / (direction @ A @ direction) * direction
        estimate.update(s, A @ s)
        x = x + s
        M = estimate.get_matrix()
        assert np.array_equal(M, M.T)
        if kind == "hess":
            np.testing.assert_allclose(M @ s, A @ s, rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_allclose(M @ (A @ s), s, rtol=1e-10, atol=1e-12)
        assert np.linalg.eigvalsh(M)[0] > 0
    np.testing.assert_allclose(x, 0, atol=1e-8)
    wanted = A if kind == "hess" else np.linalg.inv(A)
    np.testing.assert_allclose(estimate.get_matrix(), wanted, rtol=1e-7, atol=1e-8)
    assert estimate.skipped == 0


def test_both_forms_are_inverses_of_one_another():
    A = quadratic()
    one, two = cx.DFP(init_scale=1.0), cx.DFP(init_scale=1.0)
    one.initialize(6, "hess"), two.initialize(6, "inv_hess")
    for _ in range(9):
        s = RNG.standard_normal(6)
        one.update(s, A @ s), two.update(s, A @ s)
        np.testing.assert_allclose(one.get_matrix() @ two.get_matrix(), np.eye(6), atol=1e-7)
    v = RNG.standard_normal(6)
    assert np.array_equal(one.dot(v), one.get_matrix() @ v) and np.array_equal(one @ v, one.dot(v))


def test_it_is_the_dual_of_scipys_bfgs():
    A = quadratic()
    dfp, bfgs = cx.DFP(init_scale=1.0), optimize.BFGS(init_scale=1.0)
    dfp.initialize(6, "hess"), bfgs.initialize(6, "inv_hess")
    for _ in range(4):
        s = RNG.standard_normal(6)
        dfp.update(s, A @ s)
        bfgs.update(A @ s, s)  # s and y exchanged
        np.testing.assert_allclose(dfp.get_matrix(), bfgs.get_matrix(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["hess", "inv_hess"])
def test_a_step_without_positive_curvature_is_skipped_and_said_once(kind):
    estimate = cx.DFP()
    estimate.initialize(2, kind)
    estimate.update(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    before = estimate.get_matrix()
    with pytest.warns(RuntimeWarning, match="DFP: an update was skipped, as sᵀy = -1"):
        estimate.update(np.array([0.0, 1.0]), np.array([0.0, -1.0]))
    estimate.update(np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    estimate.update(np.array([0.0, 0.0]), np.array([0.0, 1.0]))
    assert estimate.skipped == 3
    assert np.array_equal(estimate.get_matrix(), before)


def test_trust_constr_trains_a_network_with_it():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    ).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    risk = cx.EmpiricalRisk(
        model, torch.nn.MSELoss(), (x, torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1))
    )
    assert isinstance(cx.DFP(), optimize.HessianUpdateStrategy)
    with cx.objective(risk) as o:
        start = o.fun(o.x0)
        result = optimize.minimize(
            o.fun,
            o.x0,
            jac=o.jac,
            hess=cx.DFP(init_scale=1.0),
            method="trust-constr",
            options={"maxiter": 60},
        )
    assert result.fun < start / 3


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"min_curvature": -1}, ValueError, "DFP: min_curvature: expected a number ≥ 0"),
        ({"min_curvature": "x"}, TypeError, "DFP: min_curvature"),
        ({"init_scale": 0}, ValueError, "DFP: init_scale: expected a number > 0, or 'auto'"),
        ({"init_scale": math.nan}, ValueError, "DFP: init_scale"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        cx.DFP(**arguments)
    with pytest.raises(ValueError, match="approx_type: expected 'hess' or 'inv_hess', got 'both'"):
        cx.DFP().initialize(2, "both")


def test_another_name_is_missing_as_ever():
    with pytest.raises(AttributeError, match="module 'curvext' has no attribute 'Dfp'"):
        cx.Dfp  # noqa: B018
