"""Each loss in output space: value, residual, output Hessian and divisor, against torch's own loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import Oracle, with_reduction
from problems import LOSSES, loss_and_target
from torch import nn

import curvext as cx
from curvext.losses import output_loss

SHAPES = [(4, 3), (1, 3), (3, 3, 5), (2, 3, 2, 3)]


def posed(name, shape, reduction, device, dtype=torch.float64):
    output = torch.randn(shape).to(device, dtype) * 2
    loss, target = loss_and_target(name, reduction, output)
    return output, loss, target


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_residual_and_output_hessian_are_those_of_the_summed_loss(
    name, shape, reduction, device
):
    output, loss, target = posed(name, shape, reduction, device)
    point = output_loss(loss, None).at(output, target)
    summed = with_reduction(loss, "sum")

    def of_flat(z):
        return summed(z.view(shape), target)

    leaf = output.flatten().requires_grad_()
    value = of_flat(leaf)
    (residual,) = torch.autograd.grad(value, leaf)
    assert_close(point.value, value.detach(), "value")
    assert_close(point.residual, residual.view(shape), "residual")
    U = torch.randn(3, *shape).to(output)
    H = torch.autograd.functional.hessian(of_flat, output.flatten())
    assert_close(point.hessian_mm(U), (U.flatten(1) @ H).view_as(U), "output Hessian", scale=1.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_divisor_is_what_torch_divides_a_mean_by(name, shape, device):
    output, loss, target = posed(name, shape, "mean", device)
    point = output_loss(loss, None).at(output, target)
    if point.denominator == 0:
        assert torch.isnan(loss(output, target))
        return
    assert_close(point.value / point.denominator, loss(output, target), name)


@pytest.mark.parametrize("name", LOSSES)
def test_single_precision_output_space_agrees_with_double(name, device):
    output, loss, target = posed(name, (4, 3, 5), "mean", device)
    U = torch.randn(2, 4, 3, 5).to(output)
    exact = output_loss(loss, None).at(output, target)
    lowered = target.float() if target.is_floating_point() else target
    single = output_loss(loss, None).at(output.float(), lowered)
    assert single.residual.dtype is torch.float32
    assert_close(single.residual, exact.residual)
    assert_close(single.hessian_mm(U.float()), exact.hessian_mm(U))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ce", "ce_weight_ignore_smooth", "mse", "bce"])
def test_reduced_precision_accumulates_in_float32(name, dtype, device):
    """The input is what it is; of it, the answer is right to one rounding of the output's dtype."""
    output, loss, target = posed(name, (4, 3, 50), "sum", device)
    low = output.to(dtype)
    target = target.to(dtype) if target.is_floating_point() else target
    exact_target = target.double() if target.is_floating_point() else target
    exact = output_loss(loss, None).at(low.double(), exact_target)
    got = output_loss(loss, None).at(low, target)
    assert got.residual.dtype is dtype and got.value.dtype is torch.float32
    rounding = torch.finfo(dtype).eps
    assert_close(got.residual, exact.residual, tol=rounding)
    if name != "mse":  # f − y is itself rounded there
        assert_close(got.value, exact.value, tol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softmax_survives_large_logits(shift, device):
    z = torch.tensor([[shift, shift + 1, shift - 900.0]], dtype=torch.float64, device=device)
    point = output_loss(nn.CrossEntropyLoss(), None).at(z, torch.tensor([0], device=device))
    p = torch.softmax(z, 1)
    assert_close(point.residual, p - torch.tensor([[1.0, 0, 0]]).to(z))
    assert torch.isfinite(point.hessian_mm(torch.ones(1, 1, 3).to(z))).all()


def test_binary_cross_entropy_keeps_its_curvature_far_from_zero(device):
    """σ(z)(1 − σ(z)) at z = ±40 is e⁻⁴⁰, not zero."""
    z = torch.tensor([[40.0, -40.0]], dtype=torch.float64, device=device)
    point = output_loss(nn.BCEWithLogitsLoss(), None).at(z, torch.zeros_like(z))
    expected = torch.exp(torch.tensor([[[-40.0, -40.0]]], dtype=torch.float64))
    assert_close(point.hessian_mm(torch.ones(1, 1, 2).to(z)), expected)


def test_functional_losses_are_their_modules(device):
    output, _, target = posed("ce", (4, 3), "mean", device)
    for function, module in [(F.cross_entropy, nn.CrossEntropyLoss()), (F.mse_loss, nn.MSELoss())]:
        y = target if function is F.cross_entropy else torch.randn(4, 3).to(output)
        a, b = output_loss(function, None).at(output, y), output_loss(module, None).at(output, y)
        assert type(a) is type(b) and a.denominator == b.denominator
        assert torch.equal(a.residual, b.residual)


@pytest.mark.parametrize(
    "loss, target",
    [
        (nn.L1Loss(), "values"),
        (nn.HuberLoss(delta=0.5), "values"),
        (nn.NLLLoss(torch.tensor([0.5, 2.0, 1.0]).double(), ignore_index=1), "labels"),
        (nn.PoissonNLLLoss(), "positive"),
        (nn.SoftMarginLoss(), "signs"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else v,
)
def test_other_torch_losses_have_the_mean_of_their_definition(loss, target):
    x = torch.randn(5, 4).double()
    y = {
        "values": torch.randn(5, 3).double(),
        "labels": torch.tensor([0, 1, 2, 2, 0]),
        "positive": torch.rand(5, 3).double(),
        "signs": torch.randn(5, 3).double().sign(),
    }[target]
    model = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)).double()
    risk = cx.EmpiricalRisk(model, loss, [(x[:1], y[:1]), (x[1:], y[1:])])
    value = loss(model(x), y)
    expected = torch.autograd.grad(value, list(model.parameters()))
    assert_close(risk.gradient(), torch.cat([g.flatten() for g in expected]))
    assert_close(torch.tensor(risk.value(), dtype=torch.float64), value.detach())


def test_a_subclass_of_a_torch_loss_is_what_it_computes_not_what_it_inherits():
    class Quartic(nn.MSELoss):
        def forward(self, output, target):
            return (output - target).pow(4).sum(1).mean()

    x, y = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    model = nn.Linear(4, 3).double()
    V = torch.randn(15, 2).double()
    got = cx.HessianOperator(model, Quartic(), (x, y)) @ V
    assert_close(got, Oracle(model, Quartic(), x, y).hvp(V))


def test_a_loss_that_is_linear_in_the_output_has_no_curvature_and_no_error():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    risk = cx.EmpiricalRisk(model, lambda f, t: (f * t).sum(), (x, y), reduction="sum")
    V = torch.randn(43, 1).double()
    assert not (risk.ggn() @ V).any()
    assert_close(risk.hessian() @ V, risk.model_curvature() @ V)


@pytest.mark.parametrize(
    "module",
    [nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.NLLLoss, cx.CausalLMLoss],
    ids=lambda m: m.__name__,
)
def test_a_subclass_that_computes_nothing_of_its_own_is_its_base(module):
    class Named(module):
        pass

    assert type(output_loss(Named(), None)) is type(output_loss(module(), None))


def test_a_subclass_of_cross_entropy_has_one_divisor_for_all_batches():
    class Named(nn.CrossEntropyLoss):
        pass

    x, y, model = torch.randn(6, 4).double(), torch.tensor([0, 0, 1, 2, 2, 1]), linear()
    loss = Named(torch.tensor([0.2, 3.0, 1.0]).double())
    H = cx.HessianOperator(model, loss, [(x[:2], y[:2]), (x[2:], y[2:])])
    V = torch.eye(15).double()
    assert_close(H @ V, Oracle(model, loss, x, y).hvp(V))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.BCEWithLogitsLoss])
def test_negative_weights_count_as_they_do_in_pytorch_and_have_no_likelihood(loss):
    x, model = torch.randn(5, 4).double(), linear()
    y = torch.tensor([0, 1, 2, 0, 2]) if loss is nn.CrossEntropyLoss else torch.rand(5, 3).double()
    loss = loss(torch.tensor([3.0, -1.0, 0.5]).double())
    risk, oracle = cx.EmpiricalRisk(model, loss, (x, y)), Oracle(model, loss, x, y)
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.ggn().to_dense(), oracle.ggn())
    assert_close(risk.ggn().diagonal(), oracle.ggn().diagonal())
    with pytest.raises(ValueError, match=r"with a negative .*weight is not −log p"):
        risk.fisher()


def linear():
    return nn.Linear(4, 3).double()


# ---------------------------------------------------------------------- one number for each sample


class Scalar(nn.Module):
    """Its output is [N], or [N, 1]."""

    def __init__(self, squeezed, general):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        self.squeezed, self.general = squeezed, general

    def forward(self, x):
        f = self.body(x)
        if self.general:  # a use of a weight for which there is no rule
            f = f * torch.linalg.matrix_norm(self.body[0].weight)
        return f.squeeze(1) if self.squeezed else f


SCALAR_LOSSES = {
    "mse": nn.MSELoss(),
    "mse_sum": nn.MSELoss(reduction="sum"),
    "bce": nn.BCEWithLogitsLoss(),
    "bce_weights": nn.BCEWithLogitsLoss(torch.tensor(0.7), pos_weight=torch.tensor([2.0])),
    "huber": nn.HuberLoss(delta=0.3),
    "l1": nn.L1Loss(),
}


@pytest.mark.parametrize("materialised", [True, False])
@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("squeezed", [True, False])
@pytest.mark.parametrize("name", SCALAR_LOSSES)
def test_an_output_of_one_number_for_each_sample_may_lack_the_class_dimension(
    name, squeezed, general, materialised, device, monkeypatch
):
    if not materialised:
        monkeypatch.setattr("curvext.problem.kept_records._MATERIALISED_LIMIT", 0)
    model = Scalar(squeezed, general).to(device, torch.float64)
    loss = SCALAR_LOSSES[name].to(device)
    x = torch.randn(6, 4).to(device, torch.float64)
    y = torch.rand(6 if squeezed else (6, 1)).to(x)
    oracle, V = Oracle(model, loss, x, y), torch.eye(19).to(x)
    risk = cx.EmpiricalRisk(model, loss, [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])])
    G, E = risk.ggn(), risk.empirical_fisher()
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.hessian() @ V, oracle.hvp(V))
    for got, expected in ((G, oracle.ggn()), (E, oracle.empirical_fisher())):
        assert_close(got @ V, expected)
        assert_close(got.diagonal(), expected.diagonal())
        assert_close(got.trace(), expected.trace())
    assert_close(E.gradient_norms(), oracle.sample_gradients().norm(dim=1))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["mse", "mse_sum", "bce"])
def test_labels_drawn_for_one_number_are_those_drawn_with_a_class_dimension(
    name, reference, device
):
    models = [Scalar(squeezed, False).to(device, torch.float64) for squeezed in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = torch.randn(6, 4).to(device, torch.float64), torch.rand(6).to(device, torch.float64)
    with cx.kernels.use_reference(reference):
        flat, column = (
            cx.MCFisherOperator(
                model, SCALAR_LOSSES[name], [(x[:2], t[:2]), (x[2:], t[2:])], samples=3
            )
            for model, t in zip(models, (y, y.unsqueeze(1)), strict=True)
        )
        dense = column.to_dense()
        assert_close(flat.to_dense(), dense)
        assert_close(flat.diagonal(), dense.diagonal())
        assert_close(flat.trace(), dense.trace())


# ---------------------------------------------------------------------- a loss of one's own


def test_a_batch_that_is_all_ignored_adds_nothing_to_a_negative_log_likelihood():
    x, y = torch.randn(6, 4).double(), torch.tensor([1, 1, 0, 2, 0, 1])
    model = nn.Sequential(linear(), nn.LogSoftmax(1))
    loss = nn.NLLLoss(ignore_index=1)
    risk = cx.EmpiricalRisk(model, loss, [(x[:2], y[:2]), (x[2:], y[2:])])
    oracle = Oracle(model, loss, x, y)
    assert_close(torch.tensor(risk.value(), dtype=torch.float64), oracle.value())
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.ggn().to_dense(), oracle.ggn())
    with pytest.raises(ValueError, match="every position is ignored"):
        cx.EmpiricalRisk(model, loss, (x[:2], y[:2])).value()


def contrastive(f, y):
    """Each sample is to be like the next of its label and unlike the others."""
    return nn.functional.cross_entropy(f @ f.T, (torch.arange(len(f)) + 1) % len(f))


def pairs_of_two(f, y):
    """Sample n and sample n + 2 are to be alike."""
    return (f[:-2] - f[2:]).pow(4).sum(1).sum() / len(f)


def ranking(f, y):
    """Piecewise linear: no curvature shows that it couples samples."""
    return (1 - (f[:, :1] - f[:, 1])).clamp(min=0).mean()


COUPLED = {"contrastive": contrastive, "pairs": pairs_of_two, "ranking": ranking}


@pytest.mark.parametrize("name", ["contrastive", "pairs"])
def test_a_diagonal_made_by_samples_is_refused_for_a_loss_that_couples_them(name):
    x, y, model = torch.randn(6, 4).double(), torch.zeros(6), linear()
    G = cx.GGNOperator(model, COUPLED[name], (x, y), reduction="mean")
    loss = reducing(COUPLED[name])
    assert_close(G.to_dense(), Oracle(model, loss, x, y).ggn())
    for method in (G.diagonal, G.trace):
        with pytest.raises(ValueError, match=r"couples the samples.*curvext.diagonal\(G\)"):
            method()
    assert_close(cx.diagonal(G, probes=15).value, G.to_dense().diagonal())


@pytest.mark.parametrize("name", COUPLED)
def test_sample_gradients_are_refused_for_a_loss_that_couples_samples(name):
    x, y, model = torch.randn(6, 4).double(), torch.zeros(6), linear()
    risk = cx.EmpiricalRisk(model, COUPLED[name], (x, y), reduction="mean")
    E = risk.empirical_fisher()
    v = torch.randn(15).double()
    for ask in (E.diagonal, E.trace, E.gradient_norms, E.gram, lambda: E @ v, lambda: E.solve(v)):
        with pytest.raises(ValueError, match="couples the samples.*gradients of single samples"):
            ask()
    assert_close(risk.gradient(), Oracle(model, reducing(COUPLED[name]), x, y).gradient())


def test_a_weighted_mean_of_one_batch_couples_no_samples(device):
    weight = torch.tensor([0.2, 3.0, 1.0]).to(device, torch.float64)
    x, y = torch.randn(6, 4).to(weight), torch.tensor([0, 0, 1, 2, 2, 1]).to(device)
    model = linear().to(device)
    closed = nn.CrossEntropyLoss(weight)
    own = cx.EmpiricalRisk(model, lambda f, t: closed(f, t), (x, y), reduction="mean")
    risk = cx.EmpiricalRisk(model, closed, (x, y))
    assert_close(own.ggn().diagonal(), risk.ggn().diagonal())
    assert_close(own.empirical_fisher().diagonal(), risk.empirical_fisher().diagonal())


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sizes", [(2, 4), (1, 1, 1, 1, 1, 1), (3, 3)], ids=str)
def test_a_loss_of_several_batches_that_is_no_mean_over_samples_is_refused(sizes, cache):
    weight = torch.tensor([0.2, 3.0, 1.0]).double()
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 0, 1, 2, 2, 1])
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))

    def weighted(f, t):
        return nn.functional.cross_entropy(f, t, weight=weight)

    def masked(f, t):
        return (f.square().sum(1) * (t > 0)).sum() / (t > 0).sum().clamp(min=1)

    for loss in (weighted, masked, contrastive):
        risk = cx.EmpiricalRisk(linear(), loss, data, reduction="mean", cache=cache)
        for ask in (risk.gradient, risk.value, risk.hessian().to_dense):
            with pytest.raises(ValueError, match="no mean over samples"):
                ask()
    summed = cx.EmpiricalRisk(
        linear(), lambda f, t: weighted(f, t) * weight[t].sum(), data, reduction="sum", cache=cache
    )
    for _ in range(2):
        assert torch.isfinite(summed.gradient()).all()


def reducing(loss):
    """With the attribute that oracles ask for."""

    def reduced(f, y):
        return loss(f, y)

    reduced.reduction = "mean"
    return reduced


# ---------------------------------------------------------------------- refusals

Z = torch.randn(4, 3)


@pytest.mark.parametrize(
    "loss, error, message",
    [
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "reduction='none'"),
        (nn.MSELoss(reduction="none"), ValueError, "expected 'mean' or 'sum'"),
        (lambda f, y: f.sum(), ValueError, "reduction=None"),
        (nn.CrossEntropyLoss, TypeError, "loss: expected a loss module or a callable"),
        (
            "cross_entropy",
            TypeError,
            "loss: expected a loss module or a callable, got 'cross_entropy'",
        ),
        (None, TypeError, "loss: expected"),
    ],
    ids=lambda v: None if callable(v) else str(v),
)
def test_a_loss_that_is_none_is_refused(loss, error, message):
    with pytest.raises(error, match=message):
        output_loss(loss, None)


def test_a_reduction_that_contradicts_the_loss_is_refused():
    with pytest.raises(ValueError, match="'sum' contradicts loss.reduction = 'mean'"):
        output_loss(nn.MSELoss(), "sum")


@pytest.mark.parametrize(
    "loss, target, error, message",
    [
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 3]), ValueError, r"labels 0..3.*3 classes"),
        (nn.CrossEntropyLoss(), torch.tensor([0, -1, 2, 2]), ValueError, "labels -1..2"),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1]), ValueError, r"wants a target \[4\]"),
        (nn.CrossEntropyLoss(), torch.zeros(4, 4), ValueError, "CrossEntropyLoss: output"),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 2], dtype=torch.int32), TypeError, "int32"),
        (nn.CrossEntropyLoss(), "labels", TypeError, "expected a tensor as target, got str"),
        (nn.MSELoss(), torch.randn(4, 1), ValueError, r"target has shape \[4, 1\].*\[4, 3\]"),
        (nn.MSELoss(), torch.ones(4, 3, dtype=torch.long), TypeError, "int64"),
        (nn.BCEWithLogitsLoss(), torch.ones(4), ValueError, "must be equal"),
        (nn.BCEWithLogitsLoss(), torch.ones(4, 3, dtype=torch.bool), TypeError, "bool"),
        (cx.CausalLMLoss(), torch.ones(4, dtype=torch.long), ValueError, r"\[N, T, V\]"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(loss, target, error, message):
    with pytest.raises(error, match=message):
        output_loss(loss, None).at(Z, target)


@pytest.mark.parametrize(
    "loss, message",
    [
        (nn.CrossEntropyLoss(torch.ones(5)), r"CrossEntropyLoss: weight.*\[5\].*\[3\], one for"),
        (nn.CrossEntropyLoss(torch.ones(2)), r"CrossEntropyLoss: weight.*\[2\].*\[3\]"),
        (nn.CrossEntropyLoss(torch.ones(3, 1)), r"CrossEntropyLoss: weight.*\[3, 1\].*\[3\]"),
        (nn.CrossEntropyLoss(torch.tensor(1.0)), r"CrossEntropyLoss: weight.*\[\].*\[3\]"),
        (
            nn.CrossEntropyLoss(torch.tensor([1.0, float("nan"), 1.0])),
            "CrossEntropyLoss: weight contains nan or inf",
        ),
        (nn.NLLLoss(torch.ones(2)), r"NLLLoss: weight.*\[2\].*\[3\]"),
        (nn.NLLLoss(torch.tensor([1.0, float("inf"), 1.0])), "NLLLoss: weight contains nan or inf"),
        (nn.BCEWithLogitsLoss(torch.ones(4)), r"Loss: weight.*\[4\].*broadcasts.*\[4, 3\]"),
        (nn.BCEWithLogitsLoss(torch.ones(1, 4, 3)), r"Loss: weight.*\[1, 4, 3\].*\[4, 3\]"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(2)), r"Loss: pos_weight.*\[2\].*\[4, 3\]"),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor(float("inf"))),
            "BCEWithLogitsLoss: pos_weight contains nan or inf",
        ),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(loss, message):
    target = torch.rand(4, 3) if isinstance(loss, nn.BCEWithLogitsLoss) else torch.arange(4) % 3
    with pytest.raises(ValueError, match=message):
        output_loss(loss, None).at(Z, target)


def test_class_weights_are_checked_for_probability_targets_too():
    with pytest.raises(ValueError, match=r"CrossEntropyLoss: weight has shape \[2\]"):
        output_loss(nn.CrossEntropyLoss(torch.ones(2)), None).at(Z, torch.rand(4, 3))


def test_a_custom_loss_that_draws_random_numbers_is_refused_and_the_generator_put_back(device):
    def noisy(f, y):
        return (nn.functional.dropout(f) - y).square().mean()

    def failing(f, y):
        torch.rand(3, device=device)
        raise KeyError("its own")

    x, y = torch.randn(4, 4, device=device), torch.randn(4, 3, device=device)
    model = nn.Linear(4, 3).to(device)

    def states():
        of_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.get_rng_state(), *of_device]

    before = states()
    with pytest.raises(RuntimeError, match="loss: it drew random numbers"):
        cx.EmpiricalRisk(model, noisy, (x, y), reduction="mean").gradient()
    with pytest.raises(KeyError, match="its own"):
        cx.EmpiricalRisk(model, failing, (x, y), reduction="mean").gradient()
    assert all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))


def test_a_custom_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"loss: expected a scalar tensor, got \[4, 3\]"):
        output_loss(lambda f, y: f - y, "mean").at(Z, Z)


# ---------------------------------------------------------------------- the causal language model loss


def test_causal_loss_is_that_of_hugging_face():
    from models import make

    model, x = make("gpt2", dtype=torch.float32)
    labels = x["input_ids"].clone()
    labels[1, 2:] = -100
    theirs = model(**x, labels=labels).loss
    assert_close(cx.CausalLMLoss()(model(**x).logits, labels).detach(), theirs.detach(), tol=1e-6)


def test_causal_loss_checks_its_reduction():
    with pytest.raises(ValueError, match="CausalLMLoss has reduction='none'"):
        cx.CausalLMLoss(reduction="none")
