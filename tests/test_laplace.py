"""The backends for laplace-torch, beside dense matrices of autograd and laplace-torch's own; skipped without it."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from compare import assert_close
from models import N, make
from oracles import Oracle
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what others say on import is not ours
    laplace = pytest.importorskip("laplace")
    from laplace.curvature import CurvlinopsEF, CurvlinopsGGN, EFInterface, GGNInterface
    from laplace.curvature.curvature import CurvatureInterface
    from laplace.utils import FeatureExtractor

from curvext import laplace as ours
from curvext.errors import NoClosedFormError

BACKENDS = [ours.CurvextGGN, ours.CurvextEF, ours.CurvextHessian]
LIKELIHOODS = ["classification", "regression"]


def problem(name, likelihood, dtype=torch.float64, samples=N):
    """A network of the grid, inputs, labels of the likelihood, and the oracle of the summed loss."""
    model, x = make(name, dtype=dtype, samples=samples)
    if likelihood == "classification":
        y, loss = torch.arange(samples) % 3, nn.CrossEntropyLoss(reduction="sum")
    else:
        y, loss = torch.randn(samples, 3, dtype=dtype), nn.MSELoss(reduction="sum")
    return model, x, y, Oracle(model, loss, x, y)


def expected(backend, oracle, likelihood):
    """``factor`` times the dense matrix of the summed loss, and the loss likewise."""
    factor = 0.5 if likelihood == "regression" else 1.0
    matrix = {
        ours.CurvextGGN: oracle.ggn,
        ours.CurvextEF: oracle.empirical_fisher,
        ours.CurvextHessian: lambda: oracle.hvp(torch.eye(oracle.size, dtype=torch.float64)),
    }[backend]()
    return factor * oracle.value(), factor * matrix


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "tied", "lstm", "bilinear"])
def test_full_is_the_factor_times_the_matrix_of_the_summed_losses(name, backend, likelihood):
    model, x, y, oracle = problem(name, likelihood)
    loss, dense = backend(model, likelihood).full(x, y, N=100)
    assert torch.equal(dense, dense.T) and loss.ndim == 0 and not loss.requires_grad
    value, matrix = expected(backend, oracle, likelihood)
    assert_close(dense, matrix, name)
    assert_close(loss, value, "loss")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("backend", [ours.CurvextGGN, ours.CurvextEF])
@pytest.mark.parametrize(
    "name", ["mlp", "conv2d", "group_norm", "embedding", "attention", "swin_windows", "gru", "tied"]
)
def test_diag_is_the_diagonal_of_full(name, backend, likelihood):
    model, x, y, oracle = problem(name, likelihood)
    loss, diagonal = backend(model, likelihood).diag(x, y, N=100, anything="else")
    value, matrix = expected(backend, oracle, likelihood)
    assert_close(diagonal, matrix.diagonal(), name)
    assert_close(loss, value, "loss")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_subnetwork_gives_its_rows_and_columns_in_its_order(backend):
    model, x, y, oracle = problem("mlp", "classification")
    chosen = torch.tensor([40, 3, 41, 0, 22])  # of three of the four parameters
    made = backend(model, "classification", subnetwork_indices=chosen)
    _, matrix = expected(backend, oracle, "classification")
    assert_close(made.full(x, y)[1], matrix[chosen][:, chosen])
    if backend is not ours.CurvextHessian:
        assert_close(made.diag(x, y)[1], matrix.diagonal()[chosen])


@pytest.mark.parametrize("backend", [ours.CurvextGGN, ours.CurvextEF])
def test_the_last_layer_alone_counts_where_it_is_asked_for(backend):
    model, x, y, oracle = problem("mlp", "classification")
    extractor = FeatureExtractor(copy.deepcopy(model))
    extractor.find_last_layer(x)
    made = backend(extractor, "classification", last_layer=True)
    _, matrix = expected(backend, oracle, "classification")
    size = sum(p.numel() for p in made.params)
    assert size == 5 * 3 + 3
    assert_close(made.full(x, y)[1], matrix[-size:, -size:])
    assert_close(made.diag(x, y)[1], matrix.diagonal()[-size:])


def test_frozen_parameters_do_not_count():
    model, x, y, oracle = problem("mlp", "regression")
    _, matrix = expected(ours.CurvextGGN, oracle, "regression")
    model[0].weight.requires_grad_(False)
    _, diagonal = ours.CurvextGGN(model, "regression").diag(x, y)
    assert_close(diagonal, matrix.diagonal()[20:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_have_the_dtype_of_the_parameters(dtype):
    model, x, y, _ = problem("mlp", "classification", dtype)
    for backend in (ours.CurvextGGN, ours.CurvextEF):
        loss, diagonal = backend(model, "classification").diag(x, y)
        assert loss.dtype is diagonal.dtype is dtype


# ---------------------------------------------------------------------- drawn labels


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_drawn_labels_are_unbiased_and_repeat_by_the_seed_of_torch(likelihood):
    model, x, y, oracle = problem("mlp", likelihood)
    made = ours.CurvextGGN(model, likelihood, stochastic=True, num_samples=3)
    torch.manual_seed(5)
    first, second = made.diag(x, y)[1], made.diag(x, y)[1]
    torch.manual_seed(5)
    assert torch.equal(made.diag(x, y)[1], first) and not torch.equal(first, second)
    _, matrix = expected(ours.CurvextGGN, oracle, likelihood)
    many = made.diag(x, y, mc_samples=20_000)[1]
    assert_close(many, matrix.diagonal(), tol=0.06)
    full = made.full(x, y, mc_samples=2)[1]
    assert int(torch.linalg.matrix_rank(full)) <= 2 * N


# ---------------------------------------------------------------------- Kronecker factors


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kind", ["GGN", "EF"])
def test_kron_has_the_factors_of_laplaces_own(kind, likelihood, approx):
    mine, theirs = {
        "GGN": (ours.CurvextGGN, CurvlinopsGGN),
        "EF": (ours.CurvextEF, CurvlinopsEF),
    }[kind]
    model, x, y, _ = problem("mlp", likelihood)
    loss, kron = mine(model, likelihood).kron(x, y, N=20, kfac_approx=approx)
    other_loss, other = theirs(model, likelihood).kron(x, y, N=20, kfac_approx=approx)
    assert_close(loss, other_loss)
    assert [len(pair) for pair in kron.kfacs] == [2, 1, 2, 1]
    for pair, wanted in zip(kron.kfacs, other.kfacs, strict=True):
        for factor, theirs in zip(pair, wanted, strict=True):
            assert_close(factor, theirs.to(factor))


def test_kron_of_what_has_no_factors_is_refused_with_the_ways_out():
    model, x, y, _ = problem("mlp", "classification")
    with pytest.raises(NotImplementedError, match=r"CurvextHessian.kron: .*'diag' or.*Curvlinops"):
        ours.CurvextHessian(model, "classification").kron(x, y, N=N)
    part = ours.CurvextGGN(model, "classification", subnetwork_indices=torch.tensor([1]))
    with pytest.raises(NotImplementedError, match="CurvextGGN.kron: a subnetwork has no Kronecker"):
        part.kron(x, y, N=N)
    grouped, x, y, _ = problem("conv2d_groups", "classification")
    with pytest.raises(NotImplementedError, match="factor for each of its groups"):
        ours.CurvextGGN(grouped, "classification").kron(x, y, N=N)


# ---------------------------------------------------------------------- eigenpairs of all batches


@pytest.mark.parametrize("backend", BACKENDS)
def test_eig_lowrank_has_the_leading_pairs_of_the_union(backend):
    model, x, y, oracle = problem("mlp", "classification")
    made = backend(model, "classification")
    loader = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)
    vectors, values, loss = made.eig_lowrank(loader)
    value, matrix = expected(backend, oracle, "classification")
    exact = torch.linalg.eigvalsh(matrix)[-made.low_rank :]
    exact = exact[exact > 1e-6 * exact[-1]]
    assert_close(values, exact, tol=1e-6)
    assert_close(matrix @ vectors, vectors * values, tol=1e-5)
    assert_close(loss, value)


# ---------------------------------------------------------------------- the library itself


@pytest.mark.parametrize("structure", ["diag", "full", "kron"])
@pytest.mark.parametrize("weights", ["all", "last_layer"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_fit_is_that_with_laplaces_own_backend(likelihood, weights, structure):
    model, x, y, _ = problem("mlp", likelihood, torch.float32)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    fits = []
    for backend in (ours.CurvextGGN, CurvlinopsGGN):
        fit = laplace.Laplace(
            copy.deepcopy(model),
            likelihood,
            subset_of_weights=weights,
            hessian_structure=structure,
            backend=backend,
        )
        fit.fit(loader)
        fits.append(fit)
    assert_close(fits[0].log_marginal_likelihood(), fits[1].log_marginal_likelihood(), tol=1e-4)
    answers = [f(x) if likelihood == "classification" else f(x)[1] for f in fits]
    assert_close(answers[0], answers[1], tol=1e-3)


@pytest.mark.parametrize("structure", ["diag", "full"])
def test_a_subnetwork_fit_is_that_of_laplaces_own(structure):
    model, x, y, _ = problem("mlp", "classification", torch.float32)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    fits = []
    for backend in (ours.CurvextGGN, CurvlinopsGGN):
        fit = laplace.Laplace(
            copy.deepcopy(model),
            "classification",
            subset_of_weights="subnetwork",
            hessian_structure=structure,
            subnetwork_indices=torch.tensor([2, 30, 41]),
            backend=backend,
        )
        fit.fit(loader)
        fits.append(fit)
    assert_close(fits[0].H, fits[1].H, tol=1e-4)


def test_a_mapping_goes_to_the_model_whole():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

        def forward(self, data):
            mask = data["mask"].unsqueeze(-1)
            return self.head(torch.tanh((self.embed(data["input_ids"]) * mask).sum(1)))

    model = Words().double()
    ids, mask = torch.randint(6, (N, 4)), torch.ones(N, 4, dtype=torch.float64)
    mask[0, 2:] = 0
    x = {"input_ids": ids, "mask": mask, "labels": torch.arange(N) % 3, "words": ["a"] * N}
    made = ours.CurvextGGN(model, "classification")
    _, diagonal = made.diag(x, x["labels"])
    assert_close(made.full(x, x["labels"])[1].diagonal(), diagonal)
    vectors, _, _ = made.eig_lowrank([x])
    assert vectors.shape[0] == len(diagonal)


def test_backends_derive_from_laplaces_interfaces_and_are_taken_for_no_other():
    assert issubclass(ours.CurvextGGN, GGNInterface) and issubclass(ours.CurvextEF, EFInterface)
    assert issubclass(ours.CurvextHessian, CurvatureInterface)
    assert not issubclass(ours.CurvextHessian, (GGNInterface, EFInterface))
    for backend in BACKENDS:
        assert not any(w in backend.__name__.lower() for w in ("backpack", "asdl", "asdfghjkl"))


# ---------------------------------------------------------------------- refusals, and what is left behind


def test_the_diagonal_of_the_hessian_is_refused_with_the_ways_out():
    model, x, y, _ = problem("mlp", "classification")
    with pytest.raises(NoClosedFormError, match=r"CurvextHessian.diag: .*full.*curvext.diagonal"):
        ours.CurvextHessian(model, "classification").diag(x, y)


def test_a_matrix_that_is_too_large_is_refused_with_its_size():
    model = nn.Linear(200, 101)
    with pytest.raises(ValueError, match=r"CurvextGGN.full: the matrix has 20301 rows.*'diag'"):
        ours.CurvextGGN(model, "regression").full(torch.randn(2, 200), torch.randn(2, 101))


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        ([1.0], torch.zeros(1), TypeError, "diag: x: expected a tensor or a mapping, got list"),
        (torch.randn(2, 4), [0, 1], TypeError, "diag: y: expected a tensor, got list"),
        (torch.randn(2, 4), torch.zeros(3, dtype=torch.long), ValueError, "diag: x, y: expected as many samples"),
        (torch.randn(0, 4), torch.zeros(0, dtype=torch.long), ValueError, "diag: y: expected at least one sample"),
        (torch.full((2, 4), torch.nan), torch.zeros(2, dtype=torch.long), ValueError, "diag: data: .*nan or inf"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_refused(x, y, error, message):
    model = nn.Linear(4, 3)
    with pytest.raises(error, match=f"CurvextGGN.{message}"):
        ours.CurvextGGN(model, "classification").diag(x, y)


def test_the_model_is_left_as_found():
    model, x, y, _ = problem("cnn", "classification", torch.float32)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    ours.CurvextGGN(model, "classification").diag(x, y)
    ours.CurvextEF(model, "classification").full(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_curvext_does_not_import_it_and_says_what_to_install_where_it_is_missing():
    script = (
        "import sys; sys.modules['laplace'] = None\n"
        "import curvext\n"
        "try:\n    import curvext.laplace\n"
        "except ImportError as e:\n    assert 'pip install laplace-torch' in str(e), e\n"
        "else:\n    raise SystemExit('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
