"""Operators as values: forms of vectors, algebra, dense and SciPy forms, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compare import assert_close
from problems import pose

import curvext as cx
from curvext.errors import NoClosedFormError
from curvext.operators.linear import DENSE_LIMIT, LinearOperator

KINDS = ["hessian", "ggn", "model_curvature", "empirical_fisher"]


def risk_of(posed, **options):
    return cx.EmpiricalRisk(posed.model, posed.loss, posed.data, **options)


@pytest.fixture
def posed(device):
    return pose("mlp", "ce", device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_vector_matrix_and_named_products_agree(kind, posed):
    A = getattr(risk_of(posed), kind)()
    V = posed.vectors(3)
    product = A @ V
    assert product.shape == V.shape and product.dtype == V.dtype
    dense = A.to_dense()
    assert_close(product, dense @ V, scale=1e-3)
    for k in range(3):
        v = V[:, k]
        assert_close(A @ v, product[:, k], scale=1e-3)
        assert torch.equal(A.matvec(v.contiguous()), A @ v)
        named = A @ A.split(v)
        assert list(named) == list(A.param_shapes)
        assert all(named[n].shape == s for n, s in A.param_shapes.items())
        assert torch.equal(A.flatten(named), A @ v)
    assert torch.equal(A.matmat(V), product)


def test_a_matrix_without_columns_gives_one_without_columns(posed):
    G = risk_of(posed).ggn()
    assert (G @ torch.empty(G.shape[0], 0, dtype=G.dtype, device=G.device)).shape == (G.shape[0], 0)


def test_vectors_may_be_strided_slices_of_larger_buffers(posed):
    G = risk_of(posed).ggn()
    V = posed.vectors(3)
    buffer = torch.full((3, 2 * G.shape[0] + 1), float("nan"), dtype=V.dtype, device=V.device)
    slot = buffer[:, 1::2]
    slot.copy_(V.T)
    assert torch.equal(G @ slot.T, G @ V)
    assert torch.equal(G @ slot[1], G @ V[:, 1].contiguous())
    expanded = V[:, :1].expand(-1, 2)
    assert torch.equal((G @ expanded)[:, 0], G @ V[:, 0].contiguous())


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_does_not_touch_its_vector_and_carries_no_graph(kind, posed):
    A = getattr(risk_of(posed), kind)()
    v = posed.vectors(1)[:, 0].clone().requires_grad_()
    before = v.detach().clone()
    product = A @ v
    assert torch.equal(v, before) and v.grad is None and not product.requires_grad
    product.zero_()
    assert torch.equal(v, before)
    with torch.no_grad():
        assert (A @ v).any()
    with torch.inference_mode():
        assert (A @ before).any()


def test_facts_of_an_operator(posed):
    G = risk_of(posed).ggn()
    assert G.shape == (posed.oracle.size, posed.oracle.size)
    assert G.dtype is torch.float64 and G.device == posed.x.device
    assert G.T is G
    assert G.param_shapes == {n: p.shape for n, p in posed.model.named_parameters()}
    assert str(posed.oracle.size) in repr(G) and "GGNOperator" in repr(G)


@pytest.mark.parametrize(
    "cls",
    [cx.HessianOperator, cx.GGNOperator, cx.ModelCurvatureOperator, cx.EmpiricalFisherOperator],
)
def test_an_operator_stands_alone_or_belongs_to_a_risk(cls, posed):
    kind = {cx.HessianOperator: "hessian", cx.GGNOperator: "ggn"}.get(cls)
    kind = kind or {cx.ModelCurvatureOperator: "model_curvature"}.get(cls, "empirical_fisher")
    alone, shared = cls(posed.model, posed.loss, posed.data), getattr(risk_of(posed), kind)()
    assert type(alone) is type(shared) is cls
    V = posed.vectors()
    assert torch.equal(alone @ V, shared @ V)


# ---------------------------------------------------------------------- algebra


def test_sums_and_multiples_are_those_of_the_matrices(posed):
    risk = risk_of(posed)
    G, H, E = risk.ggn(), risk.hessian(), risk.empirical_fisher()
    eye = cx.Identity(G.shape[0])
    V = posed.vectors()
    g, h, e = G @ V, H @ V, E @ V
    for operator, expected in [
        (2 * G + H - 0.1 * eye, 2 * g + h - 0.1 * V),
        (G - H, g - h),
        (-G, -g),
        (G / 4, g / 4),
        (eye + G, V + g),
        (3 * (G + 2 * (E - H)) - G, 2 * g + 6 * e - 6 * h),
        (G * torch.tensor(2.0), 2 * g),
        (torch.tensor(2.0) * G, 2 * g),
        (np.float64(2.0) * eye + G, 2 * V + g),
    ]:
        assert isinstance(operator, LinearOperator)
        assert operator.shape == G.shape and operator.dtype == G.dtype
        assert_close(operator @ V, expected, scale=1.0)
        assert_close(operator @ V[:, 0], expected[:, 0], scale=1.0)
    damped = G + 0.5 * eye
    assert list(damped @ damped.split(V[:, 0])) == list(G.param_shapes)


def test_a_sum_has_the_diagonal_and_trace_of_its_terms(posed):
    E = risk_of(posed).empirical_fisher()
    sum_ = 2 * E + 0.5 * cx.Identity(E.shape[0])
    assert_close(sum_.diagonal(), 2 * E.diagonal() + 0.5)
    assert_close(sum_.trace(), 2 * E.trace() + 0.5 * E.shape[0])
    with pytest.raises(NoClosedFormError):
        (sum_ + risk_of(posed).hessian()).diagonal()


def test_operators_that_do_not_fit_are_not_added(posed):
    G = risk_of(posed).ggn()
    with pytest.raises(ValueError, match="sizes .* cannot be added"):
        G + cx.Identity(3)
    other = pose("mlp", "ce", dtype=torch.float32, device=posed.x.device)
    with pytest.raises(ValueError, match="different dtype"):
        G + risk_of(other).ggn()
    some = risk_of(posed, params=["0.weight", "0.bias"]).ggn()
    same_size = risk_of(posed, params=lambda n, p: n in ("0.weight", "0.bias")).ggn()
    assert (some + same_size).shape == some.shape
    with pytest.raises(ValueError, match="cannot be added"):
        risk_of(posed, params="0.bias").ggn() + risk_of(posed, params="2.bias").ggn()


def test_python_sums_operators(posed):
    G = risk_of(posed).ggn()
    v = posed.vectors()[:, 0]
    assert torch.equal(sum([G, G]) @ v, (G + G) @ v)
    assert (0 + G) is G and (G + 0.0) is G


@pytest.mark.parametrize("other", [1.0, torch.ones(43), "G", None], ids=str)
def test_what_is_no_operator_is_not_added(other, posed):
    G = risk_of(posed).ggn()
    with pytest.raises(TypeError):
        G + other
    with pytest.raises(TypeError):
        G - other


@pytest.mark.parametrize("factor", ["2", None, torch.ones(2), 1j], ids=str)
def test_an_operator_is_multiplied_by_real_numbers_only(factor, posed):
    with pytest.raises(TypeError):
        risk_of(posed).ggn() * factor


# ---------------------------------------------------------------------- Identity


def test_the_identity_gives_a_copy_in_any_dtype():
    eye = cx.Identity(4)
    for dtype in (torch.float32, torch.float64):
        v = torch.randn(4, dtype=dtype)
        w = eye @ v
        assert torch.equal(v, w) and w.data_ptr() != v.data_ptr()
    assert torch.equal(eye.to_dense(), torch.eye(4))
    assert eye.trace() == 4 and torch.equal(eye.diagonal(), torch.ones(4))


@pytest.mark.parametrize("size", [-1, 2.5, "3", None])
def test_the_identity_needs_a_size(size):
    with pytest.raises(ValueError, match="Identity: size: expected an integer of at least 0"):
        cx.Identity(size)


def test_the_identity_has_no_names():
    with pytest.raises(TypeError, match="no parameter names"):
        cx.Identity(3).split(torch.ones(3))


# ---------------------------------------------------------------------- dense and SciPy


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_form_is_symmetric_and_of_the_operator_s_dtype(kind, posed):
    dense = getattr(risk_of(posed), kind)().to_dense()
    assert dense.shape == (posed.oracle.size,) * 2 and dense.dtype is torch.float64
    assert_close(dense, dense.T.contiguous(), tol=1e-13)


def test_the_dense_form_is_refused_beyond_a_size_that_is_said():
    with pytest.raises(
        ValueError, match=f"P = {DENSE_LIMIT + 1} is over the limit of {DENSE_LIMIT}"
    ):
        cx.Identity(DENSE_LIMIT + 1).to_dense()


@pytest.mark.parametrize("kind", KINDS)
def test_scipy_sees_the_same_operator(kind, posed):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = getattr(risk_of(posed), kind)()
    S = A.to_scipy()
    V = posed.vectors(2)
    v = V.cpu().numpy()
    assert isinstance(S, linalg.LinearOperator)
    assert S.shape == A.shape and S.dtype == np.float64
    expected = (A @ V).cpu().numpy()
    for got in (S @ v, S.matmat(v), S.T @ v, S.rmatmat(v)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)
    for got in (S @ v[:, 0], (S @ v[:, :1])[:, 0], S.matvec(v[:, 0]), S.rmatvec(v[:, 0])):
        np.testing.assert_allclose(got, expected[:, 0], rtol=0, atol=1e-14)
    integers = np.arange(A.shape[0])
    np.testing.assert_allclose(
        S @ integers, (A @ torch.arange(A.shape[0]).to(V)).cpu().numpy(), rtol=0, atol=1e-12
    )


def test_scipy_finds_the_largest_eigenvalue(posed):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    H = risk_of(posed).hessian()
    start = np.ones(H.shape[0])
    (largest,) = linalg.eigsh(H.to_scipy(), k=1, which="LA", v0=start, return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(H.to_dense())[-1]
    assert_close(torch.tensor([largest]), expected.view(1).cpu())


@pytest.mark.parametrize(
    "dtype, outside", [(torch.float32, np.float32), (torch.bfloat16, np.float32)]
)
def test_scipy_gets_a_dtype_that_numpy_has(dtype, outside):
    pytest.importorskip("scipy.sparse.linalg")
    posed = pose("linear", "mse", dtype=dtype)
    S = risk_of(posed).ggn().to_scipy()
    product = S @ np.ones(S.shape[0])
    assert S.dtype == outside and product.dtype == outside


def test_scipy_multiplies_real_and_imaginary_parts(posed):
    pytest.importorskip("scipy.sparse.linalg")
    A = risk_of(posed).ggn()
    V = posed.vectors(2)
    x, y = V.unbind(1)
    v = x.cpu().numpy() + 1j * y.cpu().numpy()
    expected = (A @ x).cpu().numpy() + 1j * (A @ y).cpu().numpy()
    np.testing.assert_allclose(A.to_scipy() @ v, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(A.to_scipy() @ v[:, None], expected[:, None], rtol=0, atol=1e-14)


def test_scipy_may_hand_over_an_array_that_is_read_only_or_runs_backwards(posed):
    pytest.importorskip("scipy.sparse.linalg")
    A = risk_of(posed).ggn()
    v = posed.vectors()[:, 0].cpu().numpy().copy()
    backwards = v[::-1].copy()[::-1]
    backwards.setflags(write=False)
    np.testing.assert_array_equal(A.to_scipy() @ backwards, A.to_scipy() @ v)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "vector, error, message",
    [
        (lambda p: torch.ones(p + 1), ValueError, r"expected shape \[43\], got \[44\]"),
        (lambda p: torch.ones(p - 1, 2), ValueError, r"expected shape \[43, K\], got \[42, 2\]"),
        (lambda p: torch.ones(p, 2, 2), ValueError, r"got \[43, 2, 2\]"),
        (lambda p: torch.tensor(1.0), ValueError, r"got \[\]"),
        (
            lambda p: torch.ones(p).float(),
            TypeError,
            "expected dtype torch.float64, got torch.float32",
        ),
        (lambda p: torch.ones(p, dtype=torch.long), TypeError, "got torch.int64"),
        (lambda p: np.ones(p), TypeError, "expected a tensor or {name: tensor}, got ndarray"),
        (lambda p: [1.0] * p, TypeError, "got list"),
        (
            lambda p: torch.ones(p).double().to_sparse(),
            TypeError,
            "GGNOperator @ v: expected a dense tensor, got one of layout torch.sparse_coo",
        ),
        (lambda p: {"0.weight": torch.ones(5, 4).double()}, ValueError, "flatten: .*missing"),
    ],
    ids=range(10),
)
def test_a_vector_that_does_not_fit_is_refused(vector, error, message, posed):
    G = risk_of(posed).ggn()
    v = vector(posed.oracle.size)
    if isinstance(v, torch.Tensor) and v.layout == torch.strided:
        wrong = v.dtype in (torch.int64,) or "float32" in message
        v = v.to(posed.x.device) if wrong else v.to(posed.x)
    with pytest.raises(error, match=message):
        G @ v


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_refused_where_it_is_looked_at(bad, posed):
    v = posed.vectors(2)
    v[7, 1] = bad
    G = risk_of(posed, check_finite=True).ggn()
    with pytest.raises(ValueError, match="@ V: contains nan or inf"):
        G @ v
    with pytest.raises(ValueError, match="@ v: contains nan or inf"):
        (G + cx.Identity(G.shape[0])) @ v[:, 1]
