"""Solves, roots, determinants, spectra and draws against the dense matrix."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_close
from problems import pose
from torch import nn

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

OPERATORS = {
    "kfac": lambda r: r.kfac(kind="exact"),
    "kfac_reduce_separate": lambda r: r.kfac(kind="empirical", approx="reduce", bias="separate"),
    "kfac_long_sides": lambda r: r.kfac(kind="exact", max_dim=4),
    "ekfac": lambda r: r.ekfac(kind="mc"),
    "ekfac_shampoo": lambda r: r.ekfac(kind="exact", basis="shampoo", max_dim=4),
    "shampoo": lambda r: r.shampoo(kind="exact"),
    "shampoo_root": lambda r: r.shampoo(kind="empirical", form="root"),
    "block_diagonal": lambda r: r.block_diagonal(kind="exact", blocks="module"),
    "hessian": lambda r: r.block_diagonal(kind="hessian", max_dim=20),
}
NETWORKS = ["mlp", "conv2d_groups", "transposed2d", "embedding", "raw_parameters", "layer_norm"]
DAMPING = 0.3


def operator_of(make, network="mlp"):
    p = pose(network)
    return OPERATORS[make](cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3)))


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_answer_is_that_of_the_dense_matrix(make, network):
    B = operator_of(make, network)
    dense = B.to_dense()
    damped = dense + DAMPING * torch.eye(len(dense), dtype=dense.dtype)
    V = torch.randn(len(dense), 3, dtype=dense.dtype)
    values, vectors = torch.linalg.eigh(damped)
    assert_close(B @ V, dense @ V, "matmat")
    assert_close(B @ V[:, 0], dense @ V[:, 0], "matvec")
    assert_close(B.flatten(B @ B.split(V[:, 1])), dense @ V[:, 1], "named")
    assert_close(B.diagonal(), dense.diagonal(), "diagonal", scale=float(dense.abs().max()))
    assert_close(B.trace(), dense.trace(), "trace")
    assert_close(B.solve(V, DAMPING), torch.linalg.solve(damped, V), "solve", 1e-9)
    assert_close(B.eigenvalues(), values - DAMPING, "eigenvalues", 1e-9)
    assert_close(B.power(2, DAMPING).to_dense(), damped @ damped, "square", 1e-9)
    assert_close((2 * B - cx.Identity(len(dense))) @ V, 2 * dense @ V - V, "sums")
    assert_close(torch.from_numpy(B.to_scipy() @ V.numpy()), dense @ V, "SciPy")
    if float(values[0]) > 0:
        assert_close(B.logdet(DAMPING), values.log().sum(), "logdet", 1e-9)
        root = (vectors * values.rsqrt()) @ vectors.T
        assert_close(B.power(-0.5, DAMPING).to_dense(), root, "root", 1e-9)
    assert_close(B.inverse(DAMPING).to_dense(), torch.linalg.inv(damped), "inverse", 1e-9)


@pytest.mark.parametrize("make", OPERATORS)
def test_leading_eigenpairs_are_pairs_and_the_leading_ones(make):
    B = operator_of(make)
    result, every = B.eigh(4), B.eigenvalues()
    assert_close(result.values, every[-4:], "values")
    assert_close(
        result.vectors.T @ result.vectors, torch.eye(4, dtype=torch.float64), "orthonormal"
    )
    assert_close(B @ result.vectors, result.vectors * result.values, "pairs", 1e-9)
    assert result.converged
    with pytest.raises(ValueError, match=r"eigh: k: expected 1\.\."):
        B.eigh(B.shape[0] + 1)


def test_a_damping_for_each_block_goes_by_its_first_parameter():
    B = operator_of("kfac")
    damping = {"0.weight": 0.1, "2.weight": 0.7}
    dense = B.to_dense()
    for name, block in B.blocks.items():
        here = B._indices(block)
        dense[here, here] += damping[name]
    v = torch.randn(len(dense), dtype=dense.dtype)
    assert_close(B.solve(v, damping), torch.linalg.solve(dense, v), "solve", 1e-9)
    assert_close(B.logdet(damping), torch.logdet(dense), "logdet", 1e-9)
    with pytest.raises(ValueError, match=r"missing \['2.weight'\], unknown \['1'\]"):
        B.solve(v, {"0.weight": 1.0, "1": 1.0})


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "1", None, True, [1.0]])
@pytest.mark.parametrize("method", ["solve", "logdet", "inverse", "pi", "sample", "power"])
def test_what_is_no_positive_number_is_no_damping(method, bad):
    B = operator_of("kfac")
    v = torch.ones(B.shape[0], dtype=torch.float64)
    call = {
        "solve": lambda: B.solve(v, bad),
        "logdet": lambda: B.logdet(bad),
        "inverse": lambda: B.inverse(bad),
        "pi": lambda: B.inverse(bad, method="pi"),
        "sample": lambda: B.sample(2, bad),
        "power": lambda: B.power(-1, bad),
    }[method]
    with pytest.raises(ValueError, match=r"damping: expected λ > 0"):
        call()
    with pytest.raises(ValueError, match=r"damping\['0.weight'\]: expected λ > 0"):
        B.solve(v, {"0.weight": bad, "2.weight": 1.0})


def test_pi_damps_both_sides_and_a_zero_block_gives_one_over_lambda():
    p = pose("mlp_dead")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac(kind="exact")
    inverse = K.inverse(0.04, method="pi")
    for name, block in inverse.blocks.items():
        a, g = K.factors[name].a, K.factors[name].g
        eye = lambda m: torch.eye(len(m), dtype=m.dtype)  # noqa: E731
        if name == "0.weight":
            assert float(g.abs().max()) == 0
            expected = torch.eye(block.size, dtype=torch.float64) / 0.04
        else:
            pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
            sides = torch.linalg.inv(g + 0.2 / pi * eye(g)), torch.linalg.inv(a + 0.2 * pi * eye(a))
            x = torch.randn(len(g), len(a), dtype=torch.float64)
            v = torch.cat([x[:, :-1].flatten(), x[:, -1]])
            y = sides[0] @ x @ sides[1]
            assert_close(block @ v, torch.cat([y[:, :-1].flatten(), y[:, -1]]), name)
            continue
        assert_close(block.to_dense(), expected, name)
    for other in ("ekfac", "shampoo", "block_diagonal"):
        with pytest.raises(ValueError, match="'pi' damps Γ and A one by one"):
            operator_of(other).inverse(0.1, method="pi")
    with pytest.raises(ValueError, match="inverse: method: expected one of 'exact', 'pi'"):
        K.inverse(0.1, method="cholesky")


def test_pi_of_a_zero_gamma_beside_inputs_that_are_not_is_one_over_lambda():
    p = pose("mlp_dead")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac(kind="exact", positions="all")
    assert float(K.factors["0.weight"].a.abs().max()) > 0
    block = K.inverse(0.04, method="pi").blocks["0.weight"]
    assert_close(block.to_dense(), torch.eye(block.size, dtype=torch.float64) / 0.04)


def test_pi_of_a_grouped_convolution_is_damped_group_by_group():
    K = operator_of("kfac", "conv2d_groups")
    factors = K.factors["0.weight"]
    block = K.inverse(0.09, method="pi").blocks["0.weight"].to_dense()
    groups = []
    for a, g in zip(factors.a, factors.g, strict=True):
        pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
        eye = torch.eye(len(a), dtype=a.dtype)
        groups.append(torch.kron(
            torch.linalg.inv(g + 0.3 / pi * torch.eye(len(g), dtype=g.dtype)), torch.linalg.inv(a + 0.3 * pi * eye)
        ))  # fmt: skip
    expected = torch.block_diag(*groups)
    width = factors.a.shape[1] - 1
    weights, biases = [], []
    for i in range(len(expected)):
        (biases if i % (width + 1) == width else weights).append(i)
    order = weights + biases
    assert_close(block, expected[order][:, order])


def test_draws_have_the_covariance_of_the_damped_inverse():
    B = operator_of("kfac")
    draws = B.sample(20000, DAMPING, seed=3)
    assert torch.equal(draws, B.sample(20000, DAMPING, seed=3))
    assert not torch.equal(draws, B.sample(20000, DAMPING, seed=4))
    covariance = draws @ draws.T / 20000
    expected = B.inverse(DAMPING).to_dense()
    # the standard error of an entry of a covariance of Gaussians is below √2 of the largest variance / √count
    assert float((covariance - expected).abs().max()) < 6 * 1.42 * float(expected.max()) / 141
    assert B.sample(0, DAMPING).shape == (B.shape[0], 0)


def test_an_indefinite_matrix_has_no_determinant_and_no_root():
    B = operator_of("hessian")
    least = float(B.eigenvalues()[0])
    assert least < -1e-6
    v = torch.ones(B.shape[0], dtype=torch.float64)
    for call in (
        lambda: B.logdet(-least / 2),
        lambda: B.power(-0.5, -least / 2),
        lambda: B.sample(1, -least / 2),
    ):
        with pytest.raises(ValueError, match="not positive definite.*raise damping"):
            call()
    with pytest.raises(ValueError, match="singular to rounding"):
        B.solve(v, -least)
    damped = B.to_dense() - 0.5 * least * torch.eye(len(v), dtype=torch.float64)
    assert_close(B.solve(v, -least / 2), torch.linalg.solve(damped, v), "solve", 1e-8)


def test_vectors_that_do_not_fit_are_refused():
    B = operator_of("kfac")
    with pytest.raises(ValueError, match=r"solve: b: expected shape \[43\] or \[43, K\]"):
        B.solve(torch.ones(3, dtype=torch.float64), 1.0)
    with pytest.raises(TypeError, match=r"solve: b: expected dtype torch.float64"):
        B.solve(torch.ones(43), 1.0)
    with pytest.raises(ValueError, match=r"contains nan or inf"):
        B.solve(torch.full((43,), math.nan, dtype=torch.float64), 1.0)
    with pytest.raises(TypeError, match=r"solve: b: expected a tensor"):
        B.solve([1.0], 1.0)
    with pytest.raises(TypeError, match="power: p: expected a finite number"):
        B.power("1", 1.0)
    assert B.solve(torch.ones(43, 0, dtype=torch.float64), 1.0).shape == (43, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_summed_in_float32(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(40, 6).to(dtype), torch.randint(3, (40,))
    K = cx.KFACOperator(model, nn.CrossEntropyLoss(), (x, y), kind="empirical")
    E = cx.KFACOperator(twin, nn.CrossEntropyLoss(), (x.double(), y), kind="empirical")
    assert K.factors["0.weight"].a.dtype == torch.float32
    tol = 1e-5 if dtype is torch.float32 else 0.05
    for name, factors in K.factors.items():
        assert_close(factors.a, E.factors[name].a, name, tol)
        assert_close(factors.g, E.factors[name].g, name, tol)
    v = torch.randn(K.shape[0]).to(dtype)
    assert (K @ v).dtype == dtype and K.solve(v, 0.1).dtype == dtype
    assert_close(K.solve(v, 0.1).double(), E.solve(v.double(), 0.1), "solve", tol)
