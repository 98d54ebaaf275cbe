"""Parameters in bf16 and fp16: sums are made in float32, and given out so."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from problems import pose
from torch import nn

import curvext as cx

HALF = [torch.bfloat16, torch.float16]


def tiny_gradients(dtype):
    """A network in ``dtype`` whose squared gradients lie below what fp16 can hold."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x = (1e-3 * torch.randn(6, 4)).to(dtype)
    return model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize("dtype", HALF)
def test_diagonals_and_norms_of_half_parameters_come_in_float32(dtype):
    problem = tiny_gradients(dtype)
    for kind in ("empirical", "mc", "exact"):
        diagonal = cx.fisher_diagonal(*problem, kind=kind)
        assert all(d.dtype is torch.float32 for d in diagonal.values())
        assert float(diagonal["0.weight"].min()) > 0
    assert cx.ggn_diagonal(*problem)["0.weight"].dtype is torch.float32
    assert cx.per_sample_gradient_norms(*problem).dtype is torch.float32


def test_squares_that_fp16_cannot_hold_are_kept_in_float32():
    problem = tiny_gradients(torch.float16)
    kept = cx.fisher_diagonal(*problem)["0.weight"]
    rounded = cx.fisher_diagonal(*problem, dtype=torch.float16)["0.weight"]
    assert rounded.dtype is torch.float16
    assert int((rounded == 0).sum()) > 0 and int((kept == 0).sum()) == 0
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model.load_state_dict(problem[0].state_dict())
    exact = cx.fisher_diagonal(model, problem[1], (problem[2][0].double(), problem[2][1]))
    assert_close(kept, exact["0.weight"], tol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_parameters_give_answers_in_their_own_dtype(dtype):
    posed = pose("mlp", dtype=dtype)
    problem = (posed.model, posed.loss, posed.data)
    assert cx.fisher_diagonal(*problem)["0.weight"].dtype is dtype
    assert cx.ggn_diagonal(*problem)["0.weight"].dtype is dtype
    assert cx.per_sample_gradient_norms(*problem).dtype is dtype


@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_asked_for_is_given(asked):
    posed = pose("mlp", dtype=torch.float32)
    problem = (posed.model, posed.loss, posed.data)
    assert cx.fisher_diagonal(*problem, dtype=asked)["0.weight"].dtype is asked
    assert cx.ggn_diagonal(*problem, dtype=asked)["0.weight"].dtype is asked
    norms = cx.per_sample_gradient_norms(*problem, dtype=asked)
    assert norms.dtype is asked
    assert_close(norms, cx.per_sample_gradient_norms(*problem), tol=1e-2)


@pytest.mark.parametrize("asked", [torch.int64, "float32", torch.complex64])
@pytest.mark.parametrize(
    "function", [cx.fisher_diagonal, cx.ggn_diagonal, cx.per_sample_gradient_norms]
)
def test_what_is_no_real_dtype_is_refused(function, asked):
    posed = pose("mlp")
    with pytest.raises(
        TypeError, match=rf"{function.__name__}: dtype: expected None or a floating"
    ):
        function(posed.model, posed.loss, posed.data, dtype=asked)


# ---------------------------------------------------------------------- operators


KINDS = ["hessian", "ggn", "model_curvature", "fisher", "mc_fisher", "empirical_fisher"]


def twins(dtype):
    """The risk of a network in ``dtype`` with float32 vectors, and that of the same values in float64."""
    half, loss, (x, y) = tiny_gradients(dtype)
    x = torch.randn(6, 4).to(dtype)
    double = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    double.load_state_dict(half.state_dict())
    narrow = cx.EmpiricalRisk(half, loss, (x, y), dtype=torch.float32)
    return narrow, cx.EmpiricalRisk(double, loss, (x.double(), y))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", KINDS)
def test_operators_of_half_parameters_take_and_give_float32_by_an_option(kind, dtype):
    narrow, exact = twins(dtype)
    A, B = getattr(narrow, kind)(), getattr(exact, kind)()
    V = torch.randn(A.size, 3)
    product = A @ V
    assert A.dtype is torch.float32 and product.dtype is torch.float32
    tol = 8 * torch.finfo(dtype).eps
    assert_close(product, B @ V.double(), kind, tol=tol)
    with pytest.raises(TypeError, match="expected dtype torch.float32"):
        A @ V.to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e8, 1e30])
def test_vectors_beyond_the_range_of_fp16_give_products_in_proportion(kind, size):
    narrow, _ = twins(torch.float16)
    A = getattr(narrow, kind)()
    v = torch.randn(A.size)
    v /= v.abs().max()
    two = 2.0 ** round(torch.log2(torch.tensor(size)).item())
    assert_close((A @ (two * v)) / two, A @ v, kind)


def test_a_zero_vector_gives_zeros():
    narrow, _ = twins(torch.float16)
    G = narrow.ggn()
    assert torch.equal(G @ torch.zeros(G.size), torch.zeros(G.size))


def test_gradient_rows_and_solvers_of_half_parameters_are_float32_by_the_option():
    narrow, exact = twins(torch.bfloat16)
    E = narrow.empirical_fisher()
    assert narrow.gradient().dtype is torch.float32
    v = torch.randn(E.size)
    assert E.products(v).dtype is E.gradient_norms().dtype is E.gram().dtype is torch.float32
    assert_close(E.products(v), exact.empirical_fisher().products(v.double()), tol=5e-2)
    x = E.solve(v, damping=1e-2)
    assert x.dtype is torch.float32
    assert_close(E @ x + 1e-2 * x, v, tol=1e-4)
    result = cx.cg(E, v, damping=1e-2)
    assert result.converged
    assert_close(result.x, x, tol=1e-3)
    assert cx.eigsh(narrow.ggn(), 2).values.dtype is torch.float32


def test_an_option_that_promises_more_digits_than_are_computed_is_refused():
    posed = pose("mlp", dtype=torch.float32)
    with pytest.raises(ValueError, match="dtype: expected None or torch.float32"):
        cx.EmpiricalRisk(posed.model, posed.loss, posed.data, dtype=torch.float64)
    cx.EmpiricalRisk(posed.model, posed.loss, posed.data, dtype=torch.float32)
