"""Numbers and counts: what every public function takes for one, and that it names what it does not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import curvext as cx
from curvext import kernels
from curvext.arguments import as_integer, as_number, as_seed, from_array


def risk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    data = (torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3)
    return cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def vector():
    return torch.ones(163, dtype=torch.float64)


COUNTS = {
    "eigsh: k": lambda n: cx.eigsh(risk().ggn(), n),
    "eigsh: maxiter": lambda n: cx.eigsh(risk().ggn(), 1, maxiter=n),
    "eigsh: ncv": lambda n: cx.eigsh(risk().ggn(), 1, ncv=n),
    "eigh: k": lambda n: risk().empirical_fisher().eigh(n),
    "cg: maxiter": lambda n: cx.cg(risk().ggn(), vector(), 1.0, maxiter=n),
    "trace: probes": lambda n: cx.trace(risk().ggn(), probes=n),
    "diagonal: probes": lambda n: cx.diagonal(risk().ggn(), probes=n),
    "spectral_density: probes": lambda n: cx.spectral_density(risk().ggn(), probes=n),
    "spectral_density: steps": lambda n: cx.spectral_density(risk().ggn(), steps=n),
    "effective_rank: probes": lambda n: cx.effective_rank(risk().ggn(), probes=n),
    "effective_rank: steps": lambda n: cx.effective_rank(risk().ggn(), steps=n),
    "null_space_dimension: probes": lambda n: cx.null_space_dimension(risk().ggn(), probes=n),
    "critical_point: probes": lambda n: cx.critical_point(risk(), probes=n),
    "critical_point: steps": lambda n: cx.critical_point(risk(), steps=n),
    "critical_point: maxiter": lambda n: cx.critical_point(risk(), maxiter=n),
    "critical_point: dense_limit": lambda n: cx.critical_point(risk(), dense_limit=n),
    "compare: leading": lambda n: cx.compare(risk(), leading=n),
    "compare: probes": lambda n: cx.compare(risk(), probes=n),
    "compare: samples": lambda n: cx.compare(risk(), samples=n),
    "compare: dense_limit": lambda n: cx.compare(risk(), dense_limit=n),
    "MCFisherOperator: samples": lambda n: risk().mc_fisher(n),
    "Identity: size": cx.Identity,
    "chunk_outputs": lambda n: cx.EmpiricalRisk(nn.Linear(1, 1), nn.MSELoss(), vector, chunk_outputs=n),
}  # fmt: skip

SEEDS = {
    "eigsh: seed": lambda s: cx.eigsh(risk().ggn(), 1, seed=s),
    "trace: seed": lambda s: cx.trace(risk().ggn(), seed=s),
    "diagonal: seed": lambda s: cx.diagonal(risk().ggn(), seed=s),
    "spectral_density: seed": lambda s: cx.spectral_density(risk().ggn(), seed=s),
    "effective_rank: seed": lambda s: cx.effective_rank(risk().ggn(), seed=s),
    "null_space_dimension: seed": lambda s: cx.null_space_dimension(risk().ggn(), seed=s),
    "critical_point: seed": lambda s: cx.critical_point(risk(), seed=s),
    "compare: seed": lambda s: cx.compare(risk(), seed=s),
    "MCFisherOperator: seed": lambda s: risk().mc_fisher(seed=s).diagonal(),
    "softmax_sample: seed": lambda s: kernels.softmax_sample(torch.ones(2, 3), torch.ones(2), s),
    "sigmoid_sample: seed": lambda s: kernels.sigmoid_sample(torch.ones(2), torch.ones(2), s),
    "mse_sample: seed": lambda s: kernels.mse_sample(torch.ones(2), torch.ones(2), s),
}

NUMBERS = {
    "solve: damping": lambda x: risk().empirical_fisher().solve(vector(), x),
    "cg: damping": lambda x: cx.cg(risk().ggn(), vector(), x),
    "cg: tol": lambda x: cx.cg(risk().ggn(), vector(), 1.0, tol=x),
    "eigsh: tol": lambda x: cx.eigsh(risk().ggn(), 1, tol=x),
    "condition_number: damping": lambda x: cx.condition_number(risk().ggn(), damping=x),
    "condition_number: tol": lambda x: cx.condition_number(risk().ggn(), 1.0, tol=x),
    "critical_point: tol": lambda x: cx.critical_point(risk(), tol=x),
    "critical_point: gradient_tol": lambda x: cx.critical_point(risk(), gradient_tol=x),
    "null_space_dimension: tol": lambda x: cx.null_space_dimension(risk().ggn(), tol=x),
    "spectral_density: width": lambda x: cx.spectral_density(risk().ggn(), width=x),
    "compare: near": lambda x: cx.compare(risk(), near=x),
    "take_step: length": lambda x: cx.take_step(risk(), vector(), x),
}

CHOICES = {
    "trace: method": lambda c: cx.trace(risk().ggn(), method=c),
    "diagonal: method": lambda c: cx.diagonal(risk().ggn(), method=c),
    "spectral_density: kernel": lambda c: cx.spectral_density(risk().ggn(), kernel=c),
    "effective_rank: kind": lambda c: cx.effective_rank(risk().ggn(), kind=c),
    "objective: curvature": lambda c: cx.objective(risk(), c),
    "natural_gradient_step: kind": lambda c: cx.natural_gradient_step(risk(), kind=c),
    "per": lambda c: risk().empirical_fisher(per=c),
    "fisher_diagonal: kind": lambda c: cx.fisher_diagonal(
        nn.Linear(1, 1), nn.MSELoss(), (torch.ones(1, 1), torch.ones(1, 1)), kind=c
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_some_words(name):
    for wrong in ("other", None, 1, ["exact"], {}):
        message = f"{name}: expected one of '.*', got {re.escape(repr(wrong))}"
        with pytest.raises(ValueError, match=f"^{message}$"):
            CHOICES[name](wrong)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_an_integer_of_anyones_and_nothing_else(name):
    for wrong in (-1, 1.5, "3", True, [1]):
        with pytest.raises(
            ValueError, match=f"^{name}: expected .*, got {wrong!r}".replace("[", r"\[")
        ):
            COUNTS[name](wrong)
    if name != "chunk_outputs":
        COUNTS[name](np.int64(4 if name != "compare: dense_limit" else 1000))


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_is_any_integer_and_nothing_else(name):
    for wrong in (1.5, "a", None):
        with pytest.raises(ValueError, match=f"^{name}: expected an integer, got {wrong!r}"):
            SEEDS[name](wrong)
    for seed in (np.int64(3), -1, 2**70):
        SEEDS[name](seed)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_a_real_one_of_anyones_and_nothing_else(name):
    for wrong in ("0.5", [1, 2], 1j):
        with pytest.raises(TypeError, match=f"^{name}: expected .*, got "):
            NUMBERS[name](wrong)
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got nan"):
        NUMBERS[name](float("nan"))
    NUMBERS[name](np.float32(0.5))
    NUMBERS[name](torch.tensor(0.5))


def test_an_argument_comes_back_as_pythons_own():
    assert type(as_integer("f: n", np.uint8(3), 1, 3)) is int
    assert as_integer("f: n", torch.tensor(3)) == 3
    assert as_seed("f: seed", 2**64 + 5) == 5 and as_seed("f: seed", -5) == -5
    assert type(as_number("f: x", np.float32(0.5), "a number")) is float
    with pytest.raises(ValueError, match=r"f: n: expected 1\.\.3 \(why\), got 4"):
        as_integer("f: n", 4, 1, 3, "why")


def test_an_array_is_copied_whatever_its_flags_and_strides():
    array = np.arange(4.0)
    array.setflags(write=False)
    assert torch.equal(from_array("f: x", array[::-1]), torch.arange(4.0).double().flip(0))
    with pytest.raises(TypeError, match="f: x: expected real numbers, got an array of complex128"):
        from_array("f: x", array * 1j)


TENSORS = {
    "outer_square": ("a", "g"),
    "outer_norm": ("a", "g"),
    "outer_sum": ("a", "g", "c"),
    "outer_dot": ("a", "g", "W"),
    "outer_gram": ("a", "g", "a2", "g2"),
    "softmax_hessian_mm": ("z", "u", "w"),
    "softmax_root_mm": ("z", "v", "w"),
    "softmax_root_t_mm": ("z", "u", "w"),
    "softmax_residual": ("z", "target", "w"),
    "mse_hessian_mm": ("z", "u", "w"),
    "sigmoid_hessian_mm": ("z", "u", "w"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_kernel_names_the_argument_that_is_no_tensor(name):
    for wrong in range(len(TENSORS[name])):
        arguments = [torch.ones(2, 2) for _ in TENSORS[name]]
        arguments[wrong] = np.ones(2)
        message = f"^{name}: {TENSORS[name][wrong]}: expected a tensor, got ndarray"
        with pytest.raises(TypeError, match=message):
            getattr(kernels, name)(*arguments)


@pytest.mark.parametrize("name", ["softmax_sample", "sigmoid_sample", "mse_sample"])
def test_a_sampling_kernel_names_the_argument_that_is_no_number(name):
    kernel = getattr(kernels, name)
    z = torch.ones(2, 3)
    w = torch.ones(2) if name == "softmax_sample" else z
    with pytest.raises(TypeError, match=f"{name}: w: expected a tensor, got float"):
        kernel(z, 1.0, 0)
    with pytest.raises(ValueError, match=f"{name}: draw: expected an integer, got 'x'"):
        kernel(z, w, 0, draw="x")
    assert torch.equal(kernel(z, w, 0, first=np.int64(2)), kernel(z, w, 0, first=2))
