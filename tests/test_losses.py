"""Each loss in output space: value, residual, output Hessian and divisor, against torch's own loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from oracles import with_reduction
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
    from oracles import Oracle

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
