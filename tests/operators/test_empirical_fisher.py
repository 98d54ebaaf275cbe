"""F_emp is a loop over samples: (1/N) Σ_n g_n g_nᵀ with mean_n g_n = ∇L."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ability import needs_plain
from compare import assert_close
from models import CASES, CLASSIFIERS, GRID, N, make
from oracles import Oracle
from problems import LOSSES, pose, pose_language_model
from torch import nn

import curvext as cx


def check_all(operator, oracle, V, what=""):
    """Products, diagonal, trace and norms against the loop."""
    g = oracle.sample_gradients()
    F = oracle.empirical_fisher()
    assert_close(operator @ V, F @ V, f"{what} product")
    assert_close(operator.diagonal(), F.diagonal(), f"{what} diagonal")
    assert_close(operator.trace(), F.trace(), f"{what} trace")
    assert_close(operator.gradient_norms(), g.norm(dim=1), f"{what} norms")


@pytest.mark.parametrize("name, loss", GRID)
def test_empirical_fisher_is_a_loop_over_samples(name, loss, device):
    posed = pose(name, loss, device=device)
    check_all(
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data),
        posed.oracle,
        posed.vectors(),
        name,
    )


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if not CASES[n].coupled])
def test_empirical_fisher_of_uneven_batches_is_that_of_all_samples(name, device):
    """One sample alone, then more: no layout may be learnt from a batch that does not show it."""
    posed = pose(name, "ce_weight", device=device, samples=7)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(1, 2, 4))
    check_all(E, posed.oracle, posed.vectors(), name)


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if not CASES[n].coupled])
def test_sample_gradient_is_that_of_the_sample_alone(name, device):
    """The definition without a batch: the model sees sample n and nothing else."""
    posed = pose(name, "ce", device=device)
    norms = cx.per_sample_gradient_norms(posed.model, posed.loss, posed.data)
    alone = []
    for x, y in ((posed.cut(*[1] * N)[n], posed.y[n : n + 1]) for n in range(N)):
        x = {k: v for k, v in x.items() if k != "labels"} if isinstance(x, dict) else x[0]
        alone.append(Oracle(posed.model, posed.loss, x, y).gradient().norm())
    assert_close(norms, torch.stack(alone), name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "image_logits", "sequence_logits"])
def test_empirical_fisher_is_right_for_every_loss_in_uneven_batches(name, loss, reduction, device):
    posed = pose(name, loss, reduction, device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(1, 3, 1))
    check_all(E, posed.oracle, posed.vectors(), f"{name}, {loss}")


@pytest.mark.parametrize("loss", ["ce", "ce_weight_ignore_smooth", "mse"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "lstm", "tied", "bilinear"])
def test_empirical_fisher_in_single_precision_agrees_with_double(name, loss, device):
    double, single = pose(name, loss), pose(name, loss, device=device, dtype=torch.float32)
    E = cx.EmpiricalFisherOperator(single.model, single.loss, single.cut(2, 3))
    F, g = double.oracle.empirical_fisher(), double.oracle.sample_gradients()
    assert_close(E @ single.vectors(), F @ double.vectors(), name)
    assert_close(E.diagonal(), F.diagonal(), name)
    assert_close(E.gradient_norms(), g.norm(dim=1), name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_sample_gradients_average_to_the_gradient(loss, reduction, device):
    posed = pose("image_logits", loss, reduction, device)
    g = posed.oracle.sample_gradients()
    total = g.mean(0) if reduction == "mean" else g.sum(0)
    assert_close(total, posed.oracle.gradient())
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.cut(2, 3))
    assert_close(risk.gradient(), total)
    assert_close(torch.tensor(risk.value(), dtype=torch.float64), posed.oracle.value())


def test_a_sample_whose_positions_are_all_ignored_counts_with_norm_zero(device):
    posed = pose("image_logits", "ce", device=device)
    y = posed.y.clone()
    y[3] = -100
    oracle = Oracle(posed.model, posed.loss, posed.x, y)
    E = cx.EmpiricalFisherOperator(
        posed.model, posed.loss, [(posed.x[:3], y[:3]), (posed.x[3:], y[3:])]
    )
    norms = E.gradient_norms()
    assert norms.shape == (N,) and norms[3] == 0
    check_all(E, oracle, posed.vectors())


def test_a_batch_whose_positions_are_all_ignored_is_no_error_among_others(device):
    posed = pose("image_logits", "ce", device=device)
    y = posed.y.clone()
    y[:2] = -100
    oracle = Oracle(posed.model, posed.loss, posed.x, y)
    E = cx.EmpiricalFisherOperator(
        posed.model, posed.loss, [(posed.x[:2], y[:2]), (posed.x[2:], y[2:])]
    )
    check_all(E, oracle, posed.vectors())


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}])
def test_empirical_fisher_of_a_language_model_takes_a_sequence_as_a_sample(options, device):
    posed = pose_language_model(device, **options)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(1, 2))
    check_all(E, posed.oracle, posed.vectors())


def masks(y, ignored):
    """One mask for each position that counts."""
    where = (y != ignored).nonzero()
    found = []
    for index in where:
        here = torch.zeros_like(y, dtype=torch.bool)
        here[tuple(index)] = True
        found.append(here)
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["ce", "ce_minus_100", "ce_weight_ignore_smooth"])
@pytest.mark.parametrize("name", ["mlp", "image_logits", "sequence_logits"])
def test_fisher_per_token_is_a_loop_over_positions_that_count(name, loss, reduction, device):
    posed = pose(name, loss, reduction, device)
    g = posed.oracle.token_gradients(masks(posed.y, posed.loss.ignore_index))
    F = g.T @ g / (len(g) if reduction == "mean" else 1)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(2, 3), per="token")
    V = posed.vectors()
    assert_close(E @ V, F @ V)
    assert_close(E.diagonal(), F.diagonal())
    assert_close(E.trace(), F.trace())


def test_fisher_per_token_of_a_language_model_is_a_loop_over_labels(device):
    posed = pose_language_model(device)
    shifted = posed.y.clone()
    shifted[:, 0] = -100
    g = posed.oracle.token_gradients(masks(shifted, -100))
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(1, 2), per="token")
    V = posed.vectors()
    assert_close(E @ V, g.T @ (g @ V) / len(g))
    assert_close(E.diagonal(), (g**2).mean(0))


@pytest.mark.parametrize("loss", ["mse", "bce", "custom"])
def test_fisher_per_token_refuses_a_loss_without_positions(loss, device):
    posed = pose("mlp", loss, device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data, per="token")
    for act in (lambda: E @ posed.vectors()[:, 0], E.diagonal, E.trace):
        with pytest.raises(ValueError, match="per='token'"):
            act()


def test_fisher_per_token_has_no_sample_gradients(device):
    posed = pose("image_logits", device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data, per="token")
    with pytest.raises(ValueError, match="gradient_norms.*per='sample'"):
        E.gradient_norms()
    with pytest.raises(ValueError, match="per: expected one of 'sample', 'token', got 'pixel'"):
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data, per="pixel")


def test_fisher_diagonal_is_named_and_shaped_like_the_parameters(device):
    posed = pose("tied", device=device)
    diagonal = cx.fisher_diagonal(posed.model, posed.loss, posed.data)
    assert {n: d.shape for n, d in diagonal.items()} == {
        n: p.shape for n, p in posed.model.named_parameters()
    }
    flat = torch.cat([d.flatten() for d in diagonal.values()])
    assert_close(flat, posed.oracle.empirical_fisher().diagonal())
    with pytest.raises(ValueError, match="kind.*'wrong'"):
        cx.fisher_diagonal(posed.model, posed.loss, posed.data, kind="wrong")


def test_a_layout_learnt_from_one_batch_is_not_trusted_where_sizes_make_it_ambiguous(device):
    """Sequence-first inside: [T, N, D] with T = 3, then T = N = 5, then N = 3 and T = 5."""
    model, _ = make("sequence_first_inside", device)
    loss = nn.CrossEntropyLoss()
    for n, t in [(5, 3), (5, 5), (3, 5), (1, 5), (5, 1), (2, 4), (4, 2), (5, 5)]:
        x = torch.randn(n, t, 4).to(device, torch.float64)
        y = torch.randint(3, (n,)).to(device)
        oracle = Oracle(model, loss, x, y)
        E = cx.EmpiricalFisherOperator(model, loss, (x, y))
        assert_close(E.diagonal(), oracle.empirical_fisher().diagonal(), f"N={n}, T={t}")
        assert_close(E.gradient_norms(), oracle.sample_gradients().norm(dim=1), f"N={n}, T={t}")


def test_a_unit_that_was_dead_when_the_layout_was_learnt_is_right_once_it_lives(device):
    model, x = make("mlp_dead", device)
    y = torch.arange(N).to(device) % 3
    loss = nn.CrossEntropyLoss()
    cx.per_sample_gradient_norms(model, loss, (x, y))
    with torch.no_grad():
        model[0].bias.zero_()
    oracle = Oracle(model, loss, x, y)
    E = cx.EmpiricalFisherOperator(model, loss, (x, y))
    assert_close(E.gradient_norms(), oracle.sample_gradients().norm(dim=1))
    assert_close(E.diagonal(), oracle.empirical_fisher().diagonal())


@pytest.mark.parametrize("samples", [1, 2, 16, 17, 33])
@pytest.mark.parametrize(
    "name",
    ["mlp", "conv2d", "attention_sequence_first", "swin_windows", "tied", "neighbours", "gru"],
)
def test_empirical_fisher_is_right_for_every_number_of_samples(name, samples, device):
    posed = pose(name, "ce", device=device, samples=samples)
    check_all(
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data),
        posed.oracle,
        posed.vectors(),
        name,
    )


def test_one_model_with_other_losses_selections_and_batches_stays_right(device):
    """Plans are kept by model: nothing of one problem may leak into the next."""
    model = pose("encoder_layer", device=device).model
    for loss, params in [
        ("ce", None),
        ("mse", "*weight"),
        ("ce_weight", "0.self_attn*"),
        ("mse", None),
        ("ce", "*bias"),
    ]:
        posed = pose("encoder_layer", loss, device=device)
        model.load_state_dict(posed.model.state_dict())
        E = cx.EmpiricalFisherOperator(model, posed.loss, posed.data, params=params)
        oracle = Oracle(model, posed.loss, posed.x, posed.y, list(E.param_shapes))
        check_all(E, oracle, posed.vectors()[: oracle.size], f"{loss}, {params}")


# ---------------------------------------------------------------------- through the Gram matrix


GRAM_NETWORKS = [
    "mlp",
    "cnn",
    "encoder_layer",
    "tied",
    "lstm",
    "conv2d_groups",
    "embedding",
    "bilinear",
    "parametrised",
    "scalar_scale",
    "swin_windows",
]


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", GRAM_NETWORKS)
def test_gram_is_that_of_the_sample_gradients(name, cache, sizes, device):
    posed = pose(name, "ce_weight", device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(*sizes), cache=cache)
    g = posed.oracle.sample_gradients()
    assert_close(E.gram(), g @ g.T)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_gram_is_right_for_every_network(name, device):
    posed = pose(name, "ce", device=device)
    g = posed.oracle.sample_gradients()
    assert_close(
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data).gram(), g @ g.T, name
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "bilinear"])
def test_solve_is_the_damped_inverse_of_the_dense_matrix(name, damping, reduction, device):
    posed = pose(name, "ce", reduction, device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(2, 3))
    B = posed.vectors(2)
    dense = posed.oracle.empirical_fisher()
    dense.diagonal().add_(damping)
    X = E.solve(B, damping=damping)
    assert_close(X, torch.linalg.solve(dense, B))
    assert_close(E.solve(B[:, 0], damping=damping), X[:, 0].contiguous())
    assert_close(E.flatten(E.solve(E.split(B[:, 0]), damping=damping)), X[:, 0].contiguous())


@pytest.mark.parametrize("of", ["gradient", "random", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("power", range(1, 10))
def test_solve_is_backward_stable_however_small_the_damping(power, dtype, of, device):
    """‖b − (F + λ) x‖ ≤ c ε (‖F‖ + λ) ‖x‖: what rounding x and the gradients to ``dtype`` leaves at best."""
    damping = 10.0**-power
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 5)
    ).to(device, dtype)
    x, y = torch.randn(30, 20).to(device, dtype), torch.randint(5, (30,)).to(device)
    loss = torch.nn.CrossEntropyLoss()
    gradient = cx.EmpiricalRisk(model, loss, (x, y)).gradient()
    random = torch.randn(gradient.shape).to(gradient) / len(gradient) ** 0.5
    b = {"gradient": gradient, "random": random, "both": torch.stack([gradient, random], 1)}[of]
    found = cx.EmpiricalFisherOperator(model, loss, (x, y)).solve(b, damping).double()
    wide = copy.deepcopy(model).double()
    shares = [loss(wide(x[n : n + 1].double()), y[n : n + 1]) for n in range(len(x))]
    rows = [torch.autograd.grad(share, list(wide.parameters())) for share in shares]
    g = torch.stack([torch.cat([t.flatten() for t in row]) for row in rows])
    dense = g.T @ g / len(x)
    size = float(torch.linalg.matrix_norm(g, 2)) ** 2 / len(x)
    dense.diagonal().add_(damping)
    expected = torch.linalg.solve(dense, b.double())
    # a per-sample gradient is a chain of a few sums of at most 40 terms
    bound = 100 * torch.finfo(dtype).eps * (size + damping) * expected.norm(dim=0)
    residual = (dense @ found - b.double()).norm(dim=0)
    assert bool((residual <= bound).all()), (residual / bound, residual / b.double().norm(dim=0))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", GRAM_NETWORKS)
def test_solve_in_single_precision_stands_a_small_damping_on_every_network(name, cache, device):
    double, single = pose(name, "ce"), pose(name, "ce", device=device, dtype=torch.float32)
    E = cx.EmpiricalFisherOperator(single.model, single.loss, single.cut(2, 3), cache=cache)
    b = double.oracle.gradient().float()
    x = E.solve(b.to(device), 1e-8).double().cpu()
    F = double.oracle.empirical_fisher()
    residual = F @ x + 1e-8 * x - b.double()
    size = float(torch.linalg.eigvalsh(F)[-1]) + 1e-8
    # the matrix itself agrees to 1e-5 in single precision
    assert float(residual.norm()) <= 1e-5 * size * float(x.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_solve_says_where_the_damping_is_lost_in_rounding(dtype, device):
    x = torch.randn(30, 4).to(
        device, dtype
    )  # of 30 samples in 4 dimensions the Gram matrix is singular
    E = cx.EmpiricalFisherOperator(
        torch.nn.Linear(4, 1, bias=False).to(device, dtype), torch.nn.MSELoss(), (x, x[:, :1])
    )
    with pytest.raises(
        ValueError, match=r"solve: damping: λ = 1e-25 is too small beside .*; raise damping"
    ):
        E.solve(torch.ones(4).to(x), 1e-25)


def test_solve_detaches_its_right_hand_side(device):
    posed = pose("mlp", device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data)
    b = posed.vectors()[:, 0].contiguous()
    expected = E.solve(b)
    x = E.solve(b.clone().requires_grad_())
    assert torch.equal(x, expected) and not x.requires_grad
    named = {name: v.requires_grad_() for name, v in E.split(b.clone()).items()}
    assert torch.equal(E.flatten(E.solve(named)), expected)


def test_solve_of_no_right_hand_side_gives_none(device):
    posed = pose("mlp", device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data)
    assert E.solve(posed.vectors(2)[:, :0]).shape == (E.size, 0)


@pytest.mark.parametrize(
    "b, damping, error, message",
    [
        (lambda p: np.ones(p), 1e-3, TypeError, "solve: b: expected a tensor or {name: tensor}, got ndarray"),
        (lambda p: torch.ones(p + 1).double(), 1e-3, ValueError, r"b: expected shape \[\d+\] or \[\d+, K\], got"),
        (lambda p: torch.ones(p, 1, 1).double(), 1e-3, ValueError, r"solve: b: expected shape"),
        (lambda p: torch.ones(p), 1e-3, TypeError, "solve: b: expected dtype torch.float64"),
        (lambda p: torch.ones(p).double() / 0, 1e-3, ValueError, "solve: b: contains nan or inf"),
        (lambda p: torch.ones(p).double(), float("inf"), ValueError, "solve: damping: expected λ > 0.*, got inf"),
        (lambda p: torch.ones(p).double(), "1", TypeError, "solve: damping: expected λ > 0.*, got '1'"),
        (lambda p: torch.ones(p).double(), None, TypeError, "solve: damping: expected λ > 0.*, got None"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_bad_system_is_refused(b, damping, error, message):
    posed = pose("mlp")
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data)
    with pytest.raises(error, match=message):
        E.solve(b(E.size), damping)


@pytest.mark.parametrize("damping", [0, -1.0, float("nan")])
def test_solve_without_damping_is_refused(damping, device):
    posed = pose("mlp", device=device)
    with pytest.raises(ValueError, match="damping: expected λ > 0"):
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data).solve(
            posed.vectors()[:, 0], damping=damping
        )


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
def test_eigh_gives_the_leading_pairs_of_the_dense_matrix(name, device):
    posed = pose(name, device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(2, 3))
    k = 3
    result = E.eigh(k)
    values = torch.linalg.eigvalsh(posed.oracle.empirical_fisher())[-k:]
    assert_close(result.values, values)
    assert_close(result.vectors.T @ result.vectors, torch.eye(k).to(values), tol=1e-12)
    F = posed.oracle.empirical_fisher()
    assert_close(F @ result.vectors, result.vectors * result.values, tol=1e-9)
    assert result.converged and bool((result.residuals < 1e-9 * values[-1]).all())


@pytest.mark.parametrize("k", [0, 6, -1, 1.5, "a", None, True])
def test_eigh_refuses_more_pairs_than_the_rank(k, device):
    posed = pose("mlp", device=device)
    with pytest.raises(ValueError, match=r"eigh: k: expected 1\.\.5"):
        cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data).eigh(k)


def test_eigh_takes_a_number_of_numpys(device):
    posed = pose("mlp", device=device)
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data)
    assert torch.equal(E.eigh(np.int64(2)).values, E.eigh(2).values)


# ---------------------------------------------------------------------- mixed and reduced precision

#: every kind of use and every path
MIXED = [
    "mlp",
    "layer_norm",
    "cnn",
    "conv1d",
    "conv2d_groups",
    "transposed2d",
    "embedding",
    "tied",
    "attention",
    "lstm",
    "layer_scale",
    "raw_parameters",
    "parametrised",
    "bmm_of_experts",
]


def assert_consistent(E, what):
    """All answers are of one matrix R Rᵀ, to the precision of sums in float32."""
    dense = E.to_dense()
    gram = E.gram().double()
    size = len(gram)
    assert_close(dense.diagonal(), E.diagonal(), f"{what} diagonal")
    assert_close(dense.trace() * size, gram.trace(), f"{what} trace")
    assert_close(E.gradient_norms().square(), gram.diagonal(), f"{what} norms")
    squared = (dense.double() @ dense.double()).trace() * size**2
    assert_close(squared, (gram @ gram).trace(), f"{what} squares", tol=1e-5)


def autocast_call(model, batch):
    x = batch[0]
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


@pytest.mark.parametrize("name", MIXED)
def test_empirical_fisher_under_autocast_is_one_matrix_near_the_exact_one(name, device):
    expected = pose(name, "ce", device=device).oracle.empirical_fisher()
    posed = pose(name, "ce", device=device, dtype=torch.float32)
    needs_plain(
        f"{name} under autocast", posed.model, lambda: autocast_call(posed.model, posed.data)
    )
    V = posed.vectors()
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.data, forward=autocast_call)
    assert_consistent(E, name)
    assert_close(E @ V, expected @ V.double(), f"{name} product", tol=0.1)
    dense = E.to_dense().double()
    damped = dense + 0.1 * torch.eye(len(dense), dtype=dense.dtype, device=device)
    solved = torch.linalg.solve(damped, V.double())
    assert_close(E.solve(V, damping=0.1), solved, f"{name} solve", tol=1e-4)
    assert_close(E.eigh(2).values, torch.linalg.eigvalsh(dense)[-2:], f"{name} eigh")


def test_what_plain_pytorch_cannot_run_here_is_skipped(monkeypatch):
    """As an LSTM in bfloat16 on a processor without AVX-512."""
    before = nn.LSTM.forward

    def of_some_processors(self, x, *state):
        if torch.is_autocast_enabled("cpu") or x.dtype is torch.bfloat16:
            raise RuntimeError("could not create a primitive descriptor for the LSTM\nforward")
        return before(self, x, *state)

    monkeypatch.setattr(nn.LSTM, "forward", of_some_processors)
    for test in (
        test_empirical_fisher_under_autocast_is_one_matrix_near_the_exact_one,
        test_empirical_fisher_of_parameters_in_bfloat16_is_near_the_exact_one,
    ):
        with pytest.raises(
            pytest.skip.Exception, match="plain PyTorch cannot run lstm .*descriptor"
        ):
            test("lstm", torch.device("cpu"))


@pytest.mark.parametrize("name", MIXED)
def test_empirical_fisher_of_parameters_in_bfloat16_is_near_the_exact_one(name, device):
    exact = pose(name, "ce", device=device)
    expected, V = exact.oracle.empirical_fisher(), exact.vectors()
    model = exact.model.bfloat16()
    x = exact.x.bfloat16() if exact.x.is_floating_point() else exact.x
    needs_plain(f"{name} in bfloat16", model, lambda: model(x))
    E = cx.EmpiricalFisherOperator(model, exact.loss, (x, exact.y))
    product = E @ V.bfloat16()
    assert product.dtype is torch.bfloat16
    assert_close(product, expected @ V, f"{name} product", tol=0.15)
