"""Comparisons against dense matrices; and the equalities of theory where they hold and where not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")


def network(*sizes, dtype=torch.float64):
    torch.manual_seed(4)
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def classification(dtype=torch.float64, samples=60):
    model = network(10, 30, 5, dtype=dtype)
    data = (torch.randn(samples, 10).to(dtype), torch.randint(5, (samples,)))
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def by_hand(risk, samples=1, seed=0):
    return {
        "H": risk.hessian().to_dense(),
        "G": risk.ggn().to_dense(),
        "F": risk.fisher().to_dense(),
        "F_mc": risk.mc_fisher(samples, seed).to_dense(),
        "F_emp": risk.empirical_fisher().to_dense(),
    }


def states(comparison):
    return {e.claim: e.holds for e in comparison.equalities}


def test_small_risks_are_compared_exactly():
    risk = classification()
    dense = by_hand(risk, samples=2, seed=3)
    c = cx.compare(risk, leading=4, samples=2, seed=3)
    assert list(c.traces) == list(dense) and not c.refused and c.size == 485
    spaces = {}
    for name, A in dense.items():
        assert float(c.traces[name].value) == pytest.approx(float(A.trace()), rel=1e-10)
        assert float(c.norms[name].value) == pytest.approx(float(A.norm()), rel=1e-10)
        assert float(c.norms[name].standard_error) == 0
        values, vectors = torch.linalg.eigh(A)
        at = values.abs().argsort(descending=True)[:4]
        assert torch.allclose(c.eigenvalues[name], values[at], rtol=1e-9)
        spaces[name] = vectors[:, at]
    for (a, b), distance in c.distances.items():
        expected = float((dense[a] - dense[b]).norm() / dense[b].norm())
        assert float(distance.value) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        overlap = float((spaces[a].T @ spaces[b]).square().sum() / 4)
        assert c.overlaps[a, b] == pytest.approx(overlap, rel=1e-6)
    assert c.value == pytest.approx(risk.value())
    assert c.gradient_norm == pytest.approx(float(risk.gradient().norm()))


def test_large_risks_are_compared_within_the_standard_errors():
    risk = classification()
    exact = cx.compare(risk)
    figures = ("traces", "norms", "distances")
    inside = total = 0
    ratios = []
    for probes in range(
        12, 24
    ):  # another count, other probes; another seed would draw other labels
        c = cx.compare(risk, probes=probes, dense_limit=0)
        assert c.products < 500
        for kind in figures:
            for key, truth in getattr(exact, kind).items():
                found = getattr(c, kind)[key]
                off, bar = abs(float(found.value - truth.value)), float(found.standard_error)
                inside += off <= 2.5 * bar + 1e-10
                total += 1
                ratios.append(off / bar if bar > 1e-10 else 0.0)
        for pair, overlap in exact.overlaps.items():
            assert c.overlaps[pair] == pytest.approx(overlap, abs=1e-4)
    # figures of one comparison share their probes, so they err together
    assert inside / total > 0.85
    assert max(ratios) < 6


def test_cross_entropy_has_g_equal_to_f_also_from_probes():
    for limit in (1000, 0):
        c = cx.compare(classification(), dense_limit=limit)
        assert states(c) == {"F = G": True, "H = G": False, "F_mc = F": False, "F_emp = F": False}
        assert float(c.distances["F", "G"].value) < 1e-12


def test_squared_error_has_g_equal_to_f_and_h_where_residuals_vanish():
    model = network(3, 8, 2)
    x = torch.randn(20, 3).double()
    fitted = (x, model(x).detach())
    c = cx.compare(cx.EmpiricalRisk(model, nn.MSELoss(), fitted))
    assert states(c)["F = G"] and states(c)["H = G"]
    assert c.gradient_norm == 0 and float(c.traces["F_emp"].value) == 0
    assert math.isnan(c.overlaps["G", "F_emp"]), "a zero matrix has no leading eigenvectors"
    assert math.isinf(float(c.distances["G", "F_emp"].value))
    nearly = (x, model(x).detach() + 1e-3 * torch.randn(20, 2).double())
    c = cx.compare(cx.EmpiricalRisk(model, nn.MSELoss(), nearly))
    h_is_g = c.equalities[1]
    assert not h_is_g.holds and h_is_g.near and str(h_is_g).startswith("H = G nearly holds: ")


def test_a_model_that_is_linear_in_its_parameters_has_h_equal_to_g():
    risk = cx.EmpiricalRisk(
        nn.Linear(4, 3).double(),
        nn.CrossEntropyLoss(),
        (torch.randn(30, 4).double(), torch.randint(3, (30,))),
    )
    assert states(cx.compare(risk))["H = G"]


def test_the_empirical_fisher_is_near_where_the_model_is_the_truth():
    # many labels drawn from the model itself: F_emp is then a Monte-Carlo estimate of F
    model = network(4, 3)
    x = torch.randn(40_000, 4).double()
    with torch.no_grad():
        y = torch.multinomial(model(x).softmax(1), 1).squeeze(1)
    c = cx.compare(cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)))
    for equality in c.equalities[1:]:
        assert equality.near and not (equality.claim.startswith("F_") and equality.holds)


@pytest.mark.parametrize("loss", ["bce", "bce sum", "tokens", "tokens sum", "mse"])
def test_a_mean_within_a_datum_is_no_surprise_at_labels_of_the_networks_own(loss):
    model, x = network(3, 8), torch.randn(20_000, 3).double()
    with torch.no_grad():
        z = model(x)
        if loss.startswith("bce"):
            share, y = 1 / 8, torch.bernoulli(z.sigmoid())
            kind = nn.BCEWithLogitsLoss
        elif loss == "mse":
            share, y = 1.0, z + 2 * torch.randn_like(z)  # variance C/2
            kind = nn.MSELoss
        else:  # two classes at four positions
            share, kind = 1 / 4, nn.CrossEntropyLoss
            model.append(nn.Unflatten(1, (2, 4)))
            y = torch.bernoulli(model(x).softmax(1)[:, 1]).long()
    share = 1.0 if loss.endswith("sum") else share
    risk = cx.EmpiricalRisk(model, kind(reduction="sum" if "sum" in loss else "mean"), (x, y))
    assert risk.own_labels_ratio() == pytest.approx(share)
    assert float(risk.empirical_fisher().trace() / risk.fisher().trace()) == pytest.approx(
        share, rel=0.1
    )
    words = str(cx.compare(risk).equalities[-1])
    assert "surprise" not in words and ("labels of its own would give" in words) == (share != 1)


def test_what_a_loss_does_not_have_is_refused_with_its_reason():
    def cubed(output, target):
        return (output - target).abs().pow(3).mean(1).mean()

    data = (torch.randn(20, 3).double(), torch.randn(20, 2).double())
    c = cx.compare(cx.EmpiricalRisk(network(3, 4, 2), cubed, data, reduction="mean"))
    assert list(c.traces) == ["H", "G", "F_emp"] and list(c.refused) == ["F", "F_mc"]
    assert "does not say of which distribution" in c.refused["F"]
    assert states(c) == {"F = G": None, "H = G": False, "F_mc = F": None, "F_emp = F": None}
    assert "F = G is not defined: there is no F\n" in str(c)
    assert f"no F: {c.refused['F']}" in str(c)


class Cubed(torch.autograd.Function):
    """x³ with a backward that PyTorch is told not to differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * u


def test_matrices_that_a_model_without_second_derivatives_lacks_are_refused_with_the_reason():
    model = network(3, 4, 2)
    model.register_forward_hook(lambda m, x, y: Cubed.apply(y))
    data = (torch.randn(20, 3).double(), torch.randint(2, (20,)))
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    c = cx.compare(risk)
    assert list(c.traces) == ["F_emp"] and list(c.refused) == ["H", "G", "F", "F_mc"]
    assert all("no second derivative" in why for why in c.refused.values())
    norm = float(risk.empirical_fisher().to_dense().norm())
    assert float(c.norms["F_emp"].value) == pytest.approx(norm, rel=1e-10)


def test_some_of_the_matrices_can_be_compared_alone():
    risk = classification()
    c, every = cx.compare(risk, matrices=("F_emp", "H", "G")), cx.compare(risk)
    assert list(c.traces) == ["H", "G", "F_emp"] and states(c) == {"H = G": False}
    assert not c.refused and c.products < every.products
    assert torch.equal(c.distances["H", "G"].value, every.distances["H", "G"].value)
    for wrong in (("H", "F"), ("G", "K")):
        with pytest.raises(ValueError, match="compare: matrices: expected some of .*, got "):
            cx.compare(risk, matrices=wrong)


def test_float32_and_densities():
    c = cx.compare(classification(torch.float32), dense_limit=0, densities=True)
    assert states(c)["F = G"] is True
    assert set(c.densities) == set(c.traces)
    d = c.densities["G"]
    assert float(torch.trapezoid(d.density, d.grid)) == pytest.approx(1, abs=1e-9)


def test_a_risk_with_one_parameter():
    model = nn.Linear(1, 1, bias=False).double()
    data = (torch.ones(3, 1).double(), torch.zeros(3, 1).double())
    c = cx.compare(cx.EmpiricalRisk(model, nn.MSELoss(), data))
    assert float(c.traces["H"].value) == pytest.approx(2)
    assert c.overlaps["H", "G"] == pytest.approx(1)


def test_bits_repeat_and_the_global_state_is_left():
    risk = classification()
    before = torch.get_rng_state()
    one, two = (cx.compare(risk, dense_limit=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert str(one) == str(two)
    assert torch.equal(one.distances["H", "G"].value, two.distances["H", "G"].value)


def test_factors_beside_are_as_far_from_each_matrix_as_their_dense_forms():
    risk = classification()
    others = {
        "K-FAC": risk.kfac(kind="exact"),
        "EKFAC": risk.ekfac(kind="exact"),
        "blocks of F": risk.block_diagonal(
            kind="exact", blocks=[["0.weight", "0.bias"], ["2.weight", "2.bias"]]
        ),
    }
    F = risk.fisher().to_dense()
    c = cx.compare(risk, beside=others)
    estimated = cx.compare(risk, beside=others, dense_limit=0, probes=60)
    for name, operator in others.items():
        expected = float((operator.to_dense() - F).norm() / F.norm())
        assert float(c.distances[name, "F"].value) == pytest.approx(expected, rel=1e-10)
        close = estimated.distances[name, "F"]
        assert abs(float(close.value) - expected) < 5 * float(close.standard_error) + 1e-6
        assert float(c.traces[name].value) == pytest.approx(float(operator.trace()), rel=1e-10)
    gaps = [float(c.distances[name, "F"].value) for name in ("blocks of F", "EKFAC", "K-FAC")]
    assert 0 < gaps[0] < gaps[1] < gaps[2], "zeros between blocks, then the Kronecker form"
    assert "K-FAC" in str(c) and states(c) == states(cx.compare(risk))


def test_what_is_beside_must_fit():
    risk = classification()
    with pytest.raises(ValueError, match=r"beside\['F'\]: this is the name of a matrix"):
        cx.compare(risk, beside={"F": risk.kfac()})
    with pytest.raises(ValueError, match="of the risk's 485 parameters, got one of 3"):
        cx.compare(risk, beside={"I": cx.Identity(3)})
    with pytest.raises(TypeError, match=r"beside\['x'\]: A must have shape"):
        cx.compare(risk, beside={"x": 3})


def test_it_prints_a_table():
    lines = str(cx.compare(classification())).splitlines()
    assert lines[0].startswith("P = 485, L = 1.7")
    assert lines[2].split() == ["matrix", "trace", "Frobenius", "norm", "leading", "eigenvalues"]
    assert "‖row − column‖ / ‖column‖" in lines
    assert lines[-4].startswith("F = G holds: ") and lines[-3].startswith("H = G does not hold: ")
    assert max(len(line) for line in lines) <= 120


def test_bad_arguments_are_named():
    with pytest.raises(
        TypeError, match="compare: risk must have the methods .* HessianOperator has no value"
    ):
        cx.compare(classification().hessian())
    for arguments, message in (
        (dict(leading=0), "leading: expected an integer of at least 1"),
        (
            dict(probes=1),
            r"probes: expected an integer of at least 2 \(for a standard error\), got 1",
        ),
        (dict(near=0.0), "near: expected a number > 0"),
    ):
        with pytest.raises(ValueError, match=f"compare: {message}"):
            cx.compare(classification(), **arguments)


def test_the_trace_of_the_empirical_fisher_is_exact_also_where_the_others_are_estimated():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)
    ).double()
    data = (torch.randn(20, 4).double(), torch.randint(3, (20,)))
    risk = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
    found = cx.compare(risk, leading=2, probes=4, dense_limit=10)
    exact = float(risk.empirical_fisher().to_dense().trace())
    assert abs(float(found.traces["F_emp"].value) - exact) <= 1e-10 * exact
    assert float(found.traces["F_emp"].standard_error) == 0
    assert float(found.traces["G"].standard_error) > 0 and found.traces["G"].degrees_of_freedom == 3
