"""Densities: mass 1, the moments and counts of the true spectrum, within their standard errors."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import BlockMatrix, Matrix, with_spectrum

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 300
SPECTRUM = torch.cat([torch.linspace(-0.5, 1, SIZE - 5), torch.tensor([4.0, 4.0, 5.0, 7.0, -2.0])])


def broadened(values, grid, width, kernel):
    """The mean of the kernels at every eigenvalue, point by point: the definition."""
    x = (grid.unsqueeze(1) - values.double()) / width
    if kernel == "gaussian":
        return (torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) / width).mean(1)
    return (1 / (math.pi * width * (1 + x**2))).mean(1)


@pytest.mark.parametrize("kernel", ["gaussian", "lorentz"])
@pytest.mark.parametrize("width", [None, 1e-7, 2.0])
def test_a_density_has_mass_1_and_so_have_its_weights(kernel, width):
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    d = cx.spectral_density(A, probes=4, steps=15, kernel=kernel, width=width)
    assert float(torch.trapezoid(d.density, d.grid)) == pytest.approx(1, abs=1e-12)
    assert float(d.weights.sum()) == pytest.approx(1, abs=1e-13)
    assert bool((d.density >= 0).all()) and bool((d.nodes.diff() >= 0).all())
    assert d.products == A.products == 60 and d.size == SIZE


def test_a_grid_of_ones_own_holds_the_share_of_the_spectrum_on_it():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    for points in (2, 3, 1000):  # however coarse
        d = cx.spectral_density(A, 500, 3, grid=torch.linspace(2, 9, points), width=0.01)
        assert float(torch.trapezoid(d.density, d.grid)) == pytest.approx(4 / SIZE, rel=1e-9)


@pytest.mark.parametrize("kernel", ["gaussian", "lorentz"])
def test_with_all_eigenvalues_it_is_the_definition(kernel, device):
    A = with_spectrum(SPECTRUM, device=device)
    grid = torch.linspace(-3, 8, 4001, dtype=torch.float64)
    d = cx.spectral_density(A, 10, 30, grid=grid, kernel=kernel, width=0.1)
    truth = broadened(torch.linalg.eigvalsh(A.dense).cpu(), grid, 0.1, kernel)
    # a cell's mean is off by (cell width)² / 24 of the second derivative
    assert float((d.density.cpu() - truth)[1:-1].abs().max()) < 2e-4 * float(truth.max())
    assert d.density.device == A.device and A.products == SIZE
    assert not d.standard_error.any() and not d.moment_errors.any()
    expected = torch.stack([(SPECTRUM.double() ** k).mean() for k in range(5)])
    assert torch.allclose(d.moments.cpu(), expected, rtol=1e-6)


def test_one_probe_is_exact_for_polynomials_of_degree_2_steps_minus_1():
    # by definition zᵀ Aᵏ z / P, and not by Lanczos
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    z = cx.algorithms.probes.Probes(cx.algorithms.products.Products(A, "test"), 5).signs(1)
    d = cx.spectral_density(A, probes=1, steps=3, seed=5)
    for degree in range(6):
        expected = (
            z * torch.linalg.matrix_power(A.dense, degree) @ z if degree else z * z
        ).sum() / SIZE
        assert float((d.weights * d.nodes**degree).sum()) == pytest.approx(
            float(expected), rel=1e-12
        )
    sixth = float((z * (torch.linalg.matrix_power(A.dense, 6) @ z)).sum() / SIZE)
    assert float((d.weights * d.nodes**6).sum()) != pytest.approx(sixth, rel=1e-6)
    assert bool(d.standard_error.isinf().all())


def test_errors_are_as_large_as_the_standard_errors_say():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    grid = torch.linspace(-3, 8, 45, dtype=torch.float64)
    exact = cx.spectral_density(A, probes=SIZE, steps=1, grid=grid, width=0.5)
    answers = [
        cx.spectral_density(A, probes=8, steps=25, seed=s, grid=grid, width=0.5) for s in range(60)
    ]
    for name, standard in (("density", "standard_error"), ("moments", "moment_errors")):
        truth = getattr(exact, name)
        there = truth.abs() > 1e-6 * truth.abs().max()
        there[0] &= name == "density"  # the zeroth moment is 1, without error
        errors = torch.stack([getattr(a, name) - truth for a in answers])[:, there]
        bars = torch.stack([getattr(a, standard) for a in answers])[:, there]
        # 7 degrees of freedom: Student's t is within ±2 in 91.4 of 100 cases; points of one answer are alike
        assert 0.84 <= float((errors.abs() <= 2 * bars).double().mean()) <= 0.99
        ratio = bars.square().mean(0).sqrt() / errors.square().mean(0).sqrt()
        assert 0.8 <= float(ratio.mean()) <= 1.25


def test_isolated_eigenvalues_are_found_and_a_repeated_one_has_its_weight():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    d = cx.spectral_density(A, probes=6, steps=40)
    for value in (-2.0, 5.0, 7.0, 4.0):
        assert float((d.nodes - value).abs().min()) < 1e-6
    double = d.weights[(d.nodes - 4).abs() < 1e-3].sum()
    assert 0.2 * 2 / SIZE < float(double) < 4 * 2 / SIZE


def test_without_reorthogonalisation_the_weights_still_hold():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    kept = cx.spectral_density(A, probes=3, steps=90)
    loose = cx.spectral_density(
        A, probes=3, steps=90, reorthogonalise=False, grid=kept.grid, width=kept.width
    )
    assert float((loose.density - kept.density).abs().max()) < 0.05 * float(kept.density.max())
    assert float(loose.weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, -3.0])
def test_a_multiple_of_the_identity_is_one_node(scale):
    for size in (1, 5, 1500):
        A = Matrix(scale * torch.eye(size))
        d = cx.spectral_density(A, probes=2, steps=4)
        assert torch.allclose(d.nodes, torch.full_like(d.nodes, scale))
        assert float(torch.trapezoid(d.density, d.grid)) == pytest.approx(1, abs=1e-12)
        assert float(d.grid[d.density.argmax()]) == pytest.approx(scale, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_quadrature_in_float64(dtype):
    A = with_spectrum(SPECTRUM, dtype, kind=BlockMatrix)
    truth = torch.linalg.eigvalsh(A.dense.double())
    d = cx.spectral_density(A, probes=8, steps=12)
    assert d.nodes.dtype is d.density.dtype is torch.float64
    assert abs(float(d.moments[1] - truth.mean())) <= 4 * float(d.moment_errors[1])
    assert float(d.nodes[-1]) == pytest.approx(7, rel=0.05)


def test_bits_repeat_with_the_seed_and_the_global_state_is_left():
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    before = torch.get_rng_state()
    one, two, other = (cx.spectral_density(A, 3, 10, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.density, two.density) and torch.equal(one.weights, two.weights)
    assert not torch.equal(one.nodes, other.nodes)


def test_probes_in_groups_are_the_same_probes(monkeypatch):
    A = with_spectrum(SPECTRUM, kind=BlockMatrix)
    whole = cx.spectral_density(A, 5, 10)
    monkeypatch.setattr("curvext.algorithms.quadrature._BASES", 2 * SIZE * 10 * 8)
    parts = cx.spectral_density(A, 5, 10)
    assert torch.allclose(whole.nodes, parts.nodes, atol=1e-10)


def test_a_network_of_which_the_matrix_is_at_hand():
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5)
    ).double()
    data = (torch.randn(60, 10).double(), torch.randint(5, (60,)))
    H = cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data).hessian()
    values = torch.linalg.eigvalsh(H.to_dense())
    d = cx.spectral_density(H, probes=8, steps=40)
    assert d.products == 320 < H.size
    assert float(d.nodes[-1]) == pytest.approx(float(values[-1]), rel=1e-6)
    assert float(d.nodes[0]) == pytest.approx(float(values[0]), rel=1e-3)
    for k in range(1, 5):
        assert abs(float(d.moments[k] - (values**k).mean())) <= 3.5 * float(d.moment_errors[k])
    off = (d.density - broadened(values, d.grid, d.width, "gaussian")).abs()
    # beside the probes' spread the kernel sees, near zero, single eigenvalues that 40 steps do not part
    assert float(torch.trapezoid(off, d.grid)) < 0.2


def test_it_prints_itself():
    d = cx.spectral_density(with_spectrum([1.0, 2.0, 6.0]))
    assert str(d).splitlines() == [
        "density of 3 eigenvalues, 3 products, 3 nodes",
        "  from +1.0000e+00 to +6.0000e+00, kernel width 5.00e-02",
        "  tr A / P = 3 exactly, tr A² / P = 13.6667 exactly",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(probes=0), "probes: expected an integer of at least 1, got 0"),
        (dict(steps=1.5), "steps: expected an integer of at least 1, got 1.5"),
        (dict(kernel="box"), "kernel: expected one of 'gaussian', 'lorentz', got 'box'"),
        (dict(width=0.0), "width: expected a positive number, got 0.0"),
        (dict(grid=torch.ones(3)), "grid: expected finite points in increasing order"),
        (dict(grid=torch.ones(1)), r"grid: expected \[n\] with n >= 2, got \[1\]"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"spectral_density: {message}"):
        cx.spectral_density(with_spectrum([1.0, 2.0]), **arguments)


def test_bad_operators_are_named():
    with pytest.raises(TypeError, match="spectral_density: grid: expected a tensor, got list"):
        cx.spectral_density(with_spectrum([1.0, 2.0]), grid=[1, 2])
    with pytest.raises(ValueError, match="spectral_density: A is 0 x 0"):
        cx.spectral_density(Matrix(torch.zeros(0, 0)))
    with pytest.raises(ValueError, match="spectral_density: A returned nan or inf"):
        cx.spectral_density(Matrix(torch.full((2, 2), torch.nan)))
