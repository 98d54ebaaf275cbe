"""A risk in scipy.optimize, and curvext's operators in scipy.sparse.linalg, beside curvext's own solvers."""

from __future__ import annotations

import warnings

import pytest
import torch
from compare import assert_close
from matrices import vector
from risks import classifier, flat
from torch import nn

import curvext as cx

np = pytest.importorskip("numpy")
optimize = pytest.importorskip("scipy.optimize")
linalg = pytest.importorskip("scipy.sparse.linalg")


def ridge(device="cpu", dtype=torch.float64) -> cx.EmpiricalRisk:
    """Logistic regression with a ridge: strictly convex, so every method has one answer."""
    model = nn.Linear(5, 3).to(device, dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x = vector(40, 5).to(device, dtype)
    y = (vector(40, seed=3) > 0).long().to(device)

    def loss(output, target):
        penalty = output.square().sum(1).mean() / 10
        return nn.functional.cross_entropy(output, target) + penalty

    return cx.EmpiricalRisk(model, loss, (x, y), reduction="mean")


METHODS = {
    "Newton-CG": dict(jac=True, hessp=True),
    "trust-ncg": dict(jac=True, hessp=True, options=dict(gtol=1e-9)),
    "trust-exact": dict(jac=True, dense=True, options=dict(gtol=1e-9)),
    "trust-constr": dict(jac=True, hessp=True, options=dict(gtol=1e-9)),
    "trust-constr with hess": dict(jac=True, hess=True, options=dict(gtol=1e-9)),
    "trust-constr with SR1": dict(jac=True, SR1=True, options=dict(gtol=1e-9)),
    "L-BFGS-B": dict(jac=True, options=dict(gtol=1e-9, ftol=0)),
    "BFGS": dict(jac=True, options=dict(gtol=1e-8)),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_scipy_finds_the_minimum(method, device):
    risk = ridge(device)
    wants = dict(METHODS[method])
    with cx.objective(risk) as o:
        for name in ("jac", "hessp", "hess"):
            if wants.get(name):
                wants[name] = getattr(o, name)
        if wants.pop("dense", False):
            wants["hess"] = lambda x: o.hess(x) @ np.eye(len(x))
        if wants.pop("SR1", False):
            wants["hess"] = optimize.SR1()
        with warnings.catch_warnings():
            if method == "trust-constr with SR1":  # SciPy's own, at the solution
                warnings.filterwarnings("ignore", "delta_grad == 0.0", UserWarning)
            found = optimize.minimize(o.fun, o.x0, method=method.split(" ")[0], **wants)
        o.write(found.x)
        assert float(risk.gradient().norm()) < 1e-5
        assert abs(risk.value() - found.fun) < 1e-12
        assert cx.critical_point(risk, gradient_tol=1e-4).verdict == "minimum"
    assert not flat(risk).any()  # as it was


def test_the_functions_are_those_of_the_risk(device):
    risk = classifier(device)
    o = cx.objective(risk)
    x, p = o.x0 + 0.1, vector(51).numpy()
    value, gradient, product = o.fun(x), o.jac(x), o.hessp(x, p)
    assert_close(flat(risk).cpu(), torch.from_numpy(x), tol=1e-15)
    assert value == risk.value()
    assert_close(torch.from_numpy(gradient), risk.gradient())
    assert_close(torch.from_numpy(product), risk.hessian() @ torch.from_numpy(p).to(device))
    o.restore()
    assert np.array_equal(flat(risk).cpu().numpy(), o.x0)
    assert gradient.dtype == product.dtype == np.float64


def test_value_gradient_and_products_at_one_point_share_a_linearisation():
    risk = classifier()
    calls = []
    risk._model.register_forward_pre_hook(lambda *_: calls.append(1))
    o = cx.objective(risk)
    x = o.x0 + 0.1
    o.fun(x), o.jac(x), o.hessp(x, x), o.fun(x.copy())
    assert len(calls) == 1
    o.fun(x + 0.1)
    assert len(calls) == 2


def test_an_operator_of_a_point_stays_there():
    o = cx.objective(classifier())
    p = vector(51).numpy()
    x = o.x0 + 0.2
    here, expected = o.hess(x), o.hessp(x, p)
    x += 1.0  # SciPy may write into its own vector
    o.fun(o.x0 + 2.0)  # as a trial step does
    assert np.array_equal(here @ p, expected)


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher"])
def test_products_can_be_with_another_matrix(curvature):
    risk = classifier()
    o = cx.objective(risk, curvature)
    p = vector(51)
    assert_close(torch.from_numpy(o.hessp(o.x0, p.numpy())), getattr(risk, curvature)() @ p)


def test_a_float32_model_is_minimised_as_far_as_float32_goes():
    risk = ridge(dtype=torch.float32)
    with cx.objective(risk) as o:
        found = optimize.minimize(o.fun, o.x0, jac=o.jac, method="L-BFGS-B")
        o.write(found.x)
        assert float(risk.gradient().norm()) < 1e-3
        assert flat(risk).dtype is torch.float32


def test_the_start_comes_back_after_an_error():
    risk = classifier()
    before = flat(risk)
    with pytest.raises(ZeroDivisionError), cx.objective(risk) as o:
        o.write(o.x0 + 1)
        raise ZeroDivisionError
    assert torch.equal(flat(risk), before)


def test_a_gradient_given_out_is_the_callers():
    o = cx.objective(classifier())
    gradient = o.jac(o.x0)
    gradient[:] = 0
    o.x0.copy()[:] = 0
    assert o.jac(o.x0).any()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: cx.objective(3), TypeError, "risk: expected an EmpiricalRisk; int has no value, gradient"),
        (lambda: cx.objective(classifier(), "jacobian"), ValueError, "curvature: expected one of 'hessian', 'ggn'"),
        (lambda: cx.objective(classifier()).fun(np.zeros(3)), ValueError, r"x: expected shape \[51\], got \[3\]"),
    ],
)  # fmt: skip
def test_a_bad_call_says_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ---------------------------------------------------------------------- scipy.sparse.linalg


# the smallest eigenvalues of G and F_emp crowd at zero, and ARPACK gives up there
@pytest.mark.parametrize(
    "kind, which",
    [("hessian", "SA"), ("hessian", "LM"), ("ggn", "LA"), ("empirical_fisher", "LM")],
)
def test_scipys_eigsh_agrees_with_ours(kind, which):
    A = getattr(classifier(samples=60), kind)()
    theirs = np.sort(linalg.eigsh(A.to_scipy(), 3, which=which, v0=np.ones(51))[0])
    ours = cx.eigsh(A, 3, which)
    scale = float(cx.eigsh(A, 1).values.abs())
    assert_close(ours.values, torch.from_numpy(theirs), tol=1e-9, scale=scale)


def test_scipys_cg_agrees_with_ours():
    G = classifier().ggn() + 0.1 * cx.Identity(51)
    b = vector(51)
    theirs, failed = linalg.cg(G.to_scipy(), b.numpy(), rtol=1e-12)
    ours = cx.cg(G, b, tol=1e-12)
    assert failed == 0 and ours.converged
    assert_close(ours.x, torch.from_numpy(theirs), tol=1e-9)


def test_scipys_lobpcg_agrees_with_ours():
    G = classifier().ggn()
    start = vector(51, 3).numpy()
    theirs, _ = linalg.lobpcg(G.to_scipy(), start, largest=True, tol=1e-9, maxiter=200)
    assert_close(cx.eigsh(G, 3, "LA").values, torch.from_numpy(np.sort(theirs)), tol=1e-8)


def test_a_float32_operator_serves_scipy():
    A = classifier(dtype=torch.float32).ggn()
    theirs = linalg.eigsh(A.to_scipy(), 1, which="LA", v0=np.ones(51, np.float32))[0]
    assert_close(cx.eigsh(A, 1, "LA").values, torch.from_numpy(theirs), tol=1e-5)
