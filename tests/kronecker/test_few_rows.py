"""Factors of fewer rows than columns: eigenvectors by the Gram matrix, and nothing of them outside the range."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from torch import nn

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

D = torch.float64
DAMPING = 0.03


def wide(convolution: bool = False) -> cx.EmpiricalRisk:
    """More features than data: every side but the last Γ has a null space."""
    torch.manual_seed(0)
    if convolution:
        model = nn.Sequential(
            nn.Conv2d(3, 9, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)
        )
        x = torch.randn(5, 3, 4, 4, dtype=D)
    else:
        model = nn.Sequential(
            nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 12, bias=False), nn.Tanh(), nn.Linear(12, 2)
        )
        x = torch.randn(5, 11, dtype=D)
    data = [(x[:2], torch.tensor([0, 1])), (x[2:], torch.tensor([1, 1, 0]))]
    return cx.EmpiricalRisk(model.to(D), nn.CrossEntropyLoss(), data)


MAKES = [
    ("kfac", False, {}),
    ("kfac", True, {"approx": "reduce"}),
    ("ekfac", False, {}),
    ("ekfac", True, {"approx": "reduce"}),
    ("ekfac", False, {"kind": "exact"}),
]


@pytest.mark.parametrize("make, convolution, options", MAKES)
def test_functions_of_the_matrix_are_those_of_its_dense_form(make, convolution, options):
    B = getattr(wide(convolution), make)(**{"kind": "empirical"} | options)
    assert make == "ekfac" or any(not b.spectral.complete for b in B.blocks.values())
    dense = B.to_dense()
    eye = torch.eye(len(dense), dtype=D)
    damped = dense + DAMPING * eye
    values, vectors = torch.linalg.eigh(damped)
    assert_close(B.inverse(DAMPING).to_dense(), torch.linalg.inv(damped), "inverse")
    assert_close(B.solve(eye, DAMPING), torch.linalg.inv(damped), "solve")
    root = (vectors * values.rsqrt()) @ vectors.T
    assert_close(B.power(-0.5, DAMPING).to_dense(), root, "root")
    assert_close(B.power(-0.5, DAMPING).diagonal(), root.diagonal(), "diagonal of the root")
    assert_close(B.power(-0.5, DAMPING).eigenvalues(), values.rsqrt().flip(0), "values of the root")
    assert_close(B.logdet(DAMPING), values.log().sum(), "log det")
    assert_close(B.eigenvalues(), values - DAMPING, "eigenvalues")
    assert_close(B.diagonal(), dense.diagonal(), "diagonal")
    for k in (3, len(dense)):
        pairs = B.eigh(k)
        assert pairs.converged
        assert_close(pairs.values, (values - DAMPING)[-k:], "leading eigenvalues")
        assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(k, dtype=D), "orthonormal")
        assert_close(dense @ pairs.vectors, pairs.vectors * pairs.values, "eigenvectors")
    again = B.inverse(DAMPING).inverse(0.2).to_dense()
    assert_close(again, torch.linalg.inv(torch.linalg.inv(damped) + 0.2 * eye), "inverse of it")


def test_damping_by_sides_is_that_of_the_dense_sides():
    K = wide().kfac(kind="empirical")
    for name, block in K.blocks.items():
        a, g = K.factors[name].a, K.factors[name].g
        pi = float(((a.trace() / len(a)) / (g.trace() / len(g))).sqrt())
        sides = [
            torch.linalg.inv(side + d * torch.eye(len(side), dtype=D))
            for side, d in ((g, DAMPING**0.5 / pi), (a, DAMPING**0.5 * pi))
        ]
        damped = block.damped_by_sides(DAMPING)
        assert_close(damped.g[0], sides[0])
        assert_close(damped.a[0], sides[1])


def test_what_is_loaded_answers_alike(tmp_path):
    for make in ("kfac", "ekfac"):
        B = getattr(wide(), make)(kind="empirical")
        for operator in (B, B.inverse(DAMPING)):
            cx.save_factors(operator, tmp_path / "factors")
            loaded = cx.load_factors(tmp_path / "factors")
            assert torch.equal(loaded.to_dense(), operator.to_dense())
            assert_close(loaded.inverse(DAMPING).to_dense(), operator.inverse(DAMPING).to_dense())


def test_data_that_are_written_to_afterwards_change_no_value():
    buffer, loss = torch.empty(5, 11, dtype=D), nn.CrossEntropyLoss()
    model = nn.Sequential(nn.Linear(11, 9, bias=False), nn.Tanh(), nn.Linear(9, 2)).to(D)
    x, y = torch.randn(5, 11, dtype=D), torch.tensor([0, 1, 1, 0, 1])
    buffer.copy_(x)
    blocks = cx.KFACOperator(model, loss, (buffer, y), kind="empirical", cache=False).blocks
    buffer.zero_()
    expected = cx.KFACOperator(model, loss, (x, y), kind="empirical").blocks
    for name, block in blocks.items():
        assert_close(
            block.spectral.eigenvalues.sort().values,
            expected[name].spectral.eigenvalues.sort().values,
        )


def test_rows_are_kept_only_while_they_are_few():
    for x, y in [(torch.randn(40, 11, dtype=D), torch.randint(2, (40,)))]:
        model = wide()._model
        factors = cx.KFACOperator(model, nn.CrossEntropyLoss(), (x, y)).factors
        assert all(f.rows == (None, None) for f in factors.values())
    few = wide().kfac().factors["0.weight"].rows
    assert [rows.x.shape for rows in few] == [(5, 12), (5, 9)]
