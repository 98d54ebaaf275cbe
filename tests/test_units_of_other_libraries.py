"""The factors of docs/conventions.md, by running the libraries; where one is not installed its tests are skipped."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import curvext as cx

N, C = 7, 3

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is their affair


def problem(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    targets = {
        "ce": (nn.CrossEntropyLoss(), torch.randint(C, (N,))),
        "mse": (nn.MSELoss(), torch.randn(N, C, dtype=torch.float64)),
        "bce": (nn.BCEWithLogitsLoss(), torch.rand(N, C, dtype=torch.float64)),
    }
    loss, y = targets[name]
    return model, loss, x, y


def close(theirs: torch.Tensor, ours: torch.Tensor, factor: float) -> None:
    torch.testing.assert_close(theirs.double(), factor * ours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_curvlinops_has_our_h_and_g_and_c_times_our_fisher_for_means_over_outputs(loss):
    curvlinops = pytest.importorskip("curvlinops")
    model, criterion, x, y = problem(loss)
    risk = cx.EmpiricalRisk(model, criterion, (x, y))
    parameters, data = list(model.parameters()), [(x, y)]
    pairs = {
        "HessianLinearOperator": (risk.hessian(), 1),
        "GGNLinearOperator": (risk.ggn(), 1),
        "EFLinearOperator": (risk.empirical_fisher(), 1 if loss == "ce" else C),
    }
    for name, (ours, factor) in pairs.items():
        theirs = getattr(curvlinops, name)(model, criterion, parameters, data)
        close(theirs @ torch.eye(ours.shape[0], dtype=torch.float64), ours.to_dense(), factor)


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_hessian_eigenthings_has_our_units(loss):
    he = pytest.importorskip("hessian_eigenthings")
    standard = pytest.importorskip("hessian_eigenthings.loss_fns.standard")
    model, criterion, x, y = problem(loss)
    risk = cx.EmpiricalRisk(model, criterion, (x, y))
    data = [(x, y)]
    theirs = [
        he.HessianOperator(model, data, standard.supervised_loss(criterion)),
        he.GGNOperator(
            model,
            data,
            standard.supervised_forward,
            standard.supervised_loss_of_output(criterion),
        ),
        he.EmpiricalFisherOperator(model, data, standard.supervised_per_sample_loss(criterion)),
    ]
    v = torch.randn(risk.hessian().shape[0], dtype=torch.float64)
    for operator, ours in zip(
        theirs, [risk.hessian(), risk.ggn(), risk.empirical_fisher()], strict=True
    ):
        close(operator.matvec(v).detach(), ours @ v, 1)


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_pyhessian_has_our_units_for_unequal_batches_too(loss):
    pyhessian = pytest.importorskip("pyhessian")
    model, criterion, x, y = problem(loss)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    H = cx.HessianOperator(model, criterion, batches)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    theirs = pyhessian.hessian(model, criterion, dataloader=batches, cuda=False)
    found = theirs.dataloader_hv_product(list(H.split(v).values()))[1]
    close(torch.cat([part.reshape(-1) for part in found]), H @ v, 1)


def test_hessian_eigenthings_averages_unequal_batches_with_equal_weights():
    he = pytest.importorskip("hessian_eigenthings")
    standard = pytest.importorskip("hessian_eigenthings.loss_fns.standard")
    model, criterion, x, y = problem("ce")
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    v = torch.randn(43, dtype=torch.float64)
    theirs = he.HessianOperator(model, batches, standard.supervised_loss(criterion)).matvec(v)
    parts = [cx.HessianOperator(model, criterion, batch) @ v for batch in batches]
    close(theirs.detach(), (parts[0] + parts[1]) / 2, 1)
    assert not torch.allclose(theirs, cx.HessianOperator(model, criterion, batches) @ v)


@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_backpack_has_shares_of_the_mean(loss):
    backpack = pytest.importorskip("backpack")
    from backpack import extensions

    model, criterion, x, y = problem(loss)
    ours_squares = cx.fisher_diagonal(model, criterion, (x, y))
    ours_norms = cx.per_sample_gradient_norms(model, criterion, (x, y))
    ours_ggn = cx.ggn_diagonal(model, criterion, (x, y))
    theirs, their_loss = (
        backpack.extend(copy.deepcopy(model)),
        backpack.extend(copy.deepcopy(criterion)),
    )
    asked = [extensions.SumGradSquared(), extensions.BatchL2Grad()]
    if loss != "bce":  # BackPACK has it for one output only
        asked.append(extensions.DiagGGNExact())
    with backpack.backpack(*asked):
        their_loss(theirs(x), y).backward()
    named = dict(theirs.named_parameters())
    for name, p in named.items():
        close(p.sum_grad_squared, ours_squares[name], 1 / N)
        if loss != "bce":
            close(p.diag_ggn_exact, ours_ggn[name], 1)
    close(torch.stack([p.batch_l2 for p in named.values()]).sum(0).sqrt(), ours_norms, 1 / N)


def test_opacus_has_our_norms():
    grad_sample = pytest.importorskip("opacus.grad_sample")
    model, criterion, x, y = problem("ce")
    ours = cx.per_sample_gradient_norms(model, criterion, (x, y))
    wrapped = grad_sample.GradSampleModuleFastGradientClipping(copy.deepcopy(model))
    criterion(wrapped(x), y).backward()
    close(wrapped.get_norm_sample().detach(), ours, 1)


def test_opacus_clips_as_our_backward_does():
    grad_sample = pytest.importorskip("opacus.grad_sample")
    model, _, x, y = problem("ce")
    bound = 0.7
    wrapped = grad_sample.GradSampleModuleFastGradientClipping(copy.deepcopy(model))
    losses = nn.functional.cross_entropy(wrapped(x), y, reduction="none")
    losses.mean().backward(retain_graph=True)
    factors = (bound / wrapped.get_norm_sample().detach()).clamp(max=1)
    wrapped.zero_grad()
    wrapped.disable_hooks()
    losses.backward(factors)  # of the sum, which PrivacyEngine divides by the batch size
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    out = cx.backward(losses, model, weights=lambda n: (bound / n).clamp(max=1) / len(n))
    assert factors.min() < 1 and factors.max() <= 1
    close(factors, out.weights, N)
    for theirs, ours in zip(wrapped.parameters(), model.parameters(), strict=True):
        close(theirs.grad, ours.grad, N)


def test_captum_has_our_inner_products_of_gradients(tmp_path):
    influence = pytest.importorskip("captum.influence")
    model, criterion, x, y = problem("ce")
    torch.save(model.state_dict(), tmp_path / "checkpoint")

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return 0.5  # the learning rate

    theirs = influence.TracInCP(
        copy.deepcopy(model),
        torch.utils.data.TensorDataset(x[:5], y[:5]),
        [str(tmp_path / "checkpoint")],
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=2,
    )
    train, test = (
        cx.EmpiricalFisherOperator(model, criterion, (x[part], y[part]))
        for part in (slice(5), slice(5, None))
    )
    close(theirs.influence((x[5:], y[5:])), test.gram(train), 0.5)
    close(theirs.self_influence(), train.gradient_norms().square(), 0.5)


def test_torch_pruning_keeps_the_squares_of_the_last_sample_alone():
    importance = pytest.importorskip("torch_pruning.pruner.importance")
    model, criterion, x, y = problem("ce")
    scorer = importance.GroupHessianImportance()
    for loss in nn.functional.cross_entropy(model(x), y, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        scorer.accumulate_grad(model)
    last = cx.fisher_diagonal(model, criterion, (x[-1:], y[-1:]))
    every = cx.fisher_diagonal(model, criterion, (x, y))
    for name, p in model.named_parameters():
        close(scorer._accu_grad[p] / scorer._counter[p], last[name], 1)
        assert not torch.allclose(last[name], every[name], rtol=0.05)


def test_torch_pruning_sums_squares_over_a_batch_in_the_diagonal_of_obdc():
    torch_pruning = pytest.importorskip("torch_pruning")
    model, criterion, x, y = problem("ce")
    theirs = copy.deepcopy(model)
    scorer = torch_pruning.importance.OBDCImportance(num_classes=C)
    layer = theirs[0]  # what _prepare_model does for the layers of a pruner
    scorer.modules.append(layer)
    layer.register_forward_pre_hook(scorer._save_input)
    layer.register_full_backward_hook(scorer._save_grad_output)
    criterion(theirs(x), y).backward()
    scorer.step()
    ours = cx.fisher_diagonal(model, criterion, (x, y))
    close(scorer.Fisher[layer][:, :-1], ours["0.weight"], N)
    close(scorer.Fisher[layer][:, -1], ours["0.bias"], N)


def test_the_plugin_of_the_examples_runs_in_avalanche(monkeypatch):
    training = pytest.importorskip("avalanche.training", exc_type=(ImportError, RuntimeError))
    from avalanche.benchmarks.scenarios import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import SupervisedPlugin

    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    plugin_of = importlib.import_module("continual_learning").FisherPlugin
    model, criterion, x, y = problem("ce")

    class Plugin(plugin_of, SupervisedPlugin):
        pass

    plugin = Plugin(10.0)
    tasks = [(x[:4], y[:4]), (x[4:], y[4:])]
    datasets = []
    for inputs, labels in tasks:
        data = torch.utils.data.TensorDataset(inputs, labels)
        data.targets = labels.tolist()
        datasets.append(as_classification_dataset(data))
    strategy = training.Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=criterion,
        train_mb_size=2,
        plugins=[plugin],
        evaluator=None,
    )
    for number, experience in enumerate(benchmark_from_datasets(train=datasets).train_stream):
        strategy.train(experience)
        expected = cx.fisher_diagonal(model, criterion, tasks[number], "exact")
        for name, value in plugin.tasks[-1][0].items():
            close(value, expected[name], 1)
    assert len(plugin.tasks) == 2


@pytest.mark.parametrize(
    "loss, likelihood, ggn, fisher",
    [("ce", "classification", N, N), ("mse", "regression", N * C / 2, N * C**2 / 2)],
)
def test_laplace_torch_sums_over_data_with_unit_variance(loss, likelihood, ggn, fisher):
    curvature = pytest.importorskip("laplace.curvature", exc_type=(ImportError, RuntimeError))
    if not hasattr(curvature, "BackPackGGN"):
        pytest.skip("laplace-torch without BackPACK")
    from backpack import extend

    model, criterion, x, y = problem(loss)
    risk = cx.EmpiricalRisk(model, criterion, (x, y))
    theirs = extend(copy.deepcopy(model))
    theirs.output_size = C
    _, G = curvature.BackPackGGN(theirs, likelihood).full(x, y)
    _, F = curvature.BackPackEF(theirs, likelihood).full(x, y)
    close(G, risk.ggn().to_dense(), ggn)
    close(F, risk.empirical_fisher().to_dense(), fisher)


# ---------------------------------------------------------------------- Kronecker factors


@pytest.mark.parametrize("bias", ["separate", "joint"])
@pytest.mark.parametrize(
    "loss, theirs, kind, factor",
    [
        ("ce", "type-2", "exact", 1),
        ("ce", "empirical", "empirical", 1),
        ("mse", "type-2", "exact", 1),
        ("mse", "empirical", "empirical", C),
    ],
)
def test_curvlinops_has_our_factors_and_c_times_the_empirical_ones_for_means_over_outputs(
    loss, theirs, kind, factor, bias
):
    curvlinops = pytest.importorskip("curvlinops")
    model, criterion, x, y = problem(loss)
    risk = cx.EmpiricalRisk(model, criterion, (x, y))
    for name, ours in (("KFAC", risk.kfac), ("EKFAC", risk.ekfac)):
        operator = getattr(curvlinops, f"{name}LinearOperator")(
            model,
            criterion,
            list(model.parameters()),
            [(x, y)],
            fisher_type=theirs,
            separate_weight_and_bias=bias == "separate",
        )
        expected = ours(kind=kind, bias=bias).to_dense()
        close(operator @ torch.eye(len(expected), dtype=torch.float64), expected, factor)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_curvlinops_counts_all_positions_of_a_convolution(approx):
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, C)
    ).double()
    data = (torch.randn(N, 2, 4, 4, dtype=torch.float64), torch.randint(C, (N,)))
    theirs = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [data],
        fisher_type="empirical",
        kfac_approx=approx,
        separate_weight_and_bias=False,
    )
    K = cx.KFACOperator(
        model, nn.CrossEntropyLoss(), data, kind="empirical", approx=approx, positions="all"
    )
    close(theirs @ torch.eye(K.shape[0], dtype=torch.float64), K.to_dense(), 1)


def test_curvlinops_counts_positions_whose_labels_are_ignored_and_we_do_not():
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Linear(4, C, bias=False).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, -100, -100, 0])
    theirs = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], fisher_type="empirical"
    )
    dense = theirs @ torch.eye(12, dtype=torch.float64)
    kept = [0, 1, 2, 5]
    K = cx.KFACOperator(model, nn.CrossEntropyLoss(), (x, y), kind="empirical")
    assert torch.allclose(K.factors["weight"].a, x[kept].T @ x[kept] / 4)
    assert not torch.allclose(dense, K.to_dense(), rtol=0.05)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_backpack_has_our_factors_of_the_exact_fisher(loss):
    backpack = pytest.importorskip("backpack")
    from backpack import extensions

    model, criterion, x, y = problem(loss)
    K = cx.EmpiricalRisk(model, criterion, (x, y)).kfac(kind="exact", bias="separate")
    theirs = backpack.extend(copy.deepcopy(model))
    with backpack.backpack(extensions.KFLR()):
        backpack.extend(copy.deepcopy(criterion))(theirs(x), y).backward()
    for name, p in theirs.named_parameters():
        close(p.kflr[0], K.factors[name].g, 1)
        if len(p.kflr) == 2:
            close(p.kflr[1], K.factors[name].a, 1)


@pytest.mark.parametrize(
    "loss, likelihood, exact, empirical",
    [("ce", "classification", N, N), ("mse", "regression", N * C / 2, N * C**2 / 2)],
)
def test_laplace_torch_has_factors_of_sums_over_data(loss, likelihood, exact, empirical):
    theirs = pytest.importorskip(
        "laplace.curvature.curvlinops", exc_type=(ImportError, RuntimeError)
    )
    model, criterion, x, y = problem(loss)
    model.output_size = C
    risk = cx.EmpiricalRisk(model, criterion, (x, y))
    for backend, kind, factor in (("GGN", "exact", exact), ("EF", "empirical", empirical)):
        _, kron = getattr(theirs, f"Curvlinops{backend}")(model, likelihood).kron(x, y, N)
        sides = [torch.kron(*f) if len(f) == 2 else f[0] for f in kron.kfacs]
        expected = risk.kfac(kind=kind, bias="separate").to_dense()
        close(torch.block_diag(*sides), expected, factor)
