"""H is the double backward of the whole risk, and H = G + R."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import CASES, CLASSIFIERS, GRID, N
from problems import LOSSES, pose, pose_language_model

import curvext as cx


def true_product(posed, V, by_differences=False):
    return posed.oracle.hvp_by_differences(V) if by_differences else posed.oracle.hvp(V)


@pytest.mark.parametrize("name, loss", GRID)
def test_hessian_product_is_the_double_backward_of_the_risk(name, loss, device):
    posed = pose(name, loss, device=device)
    V = posed.vectors()
    by_differences = CASES[name].by_differences
    expected = true_product(posed, V, by_differences)
    got = cx.HessianOperator(posed.model, posed.loss, posed.data) @ V
    assert_close(got, expected, name, tol=1e-8 if by_differences else None)


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if CASES[n].by_differences])
def test_hessian_is_symmetric_where_double_backward_is_not(name, device):
    posed = pose(name, "ce", device=device)
    H = cx.HessianOperator(posed.model, posed.loss, posed.data)
    U, V = posed.vectors(2).unbind(1)
    assert_close(U @ (H @ V), V @ (H @ U), name, scale=1.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "image_logits", "sequence_logits"])
def test_hessian_is_right_for_every_loss_in_uneven_batches(name, loss, reduction, device):
    posed = pose(name, loss, reduction, device)
    V = posed.vectors()
    H = cx.HessianOperator(posed.model, posed.loss, posed.cut(1, 3, 1))
    assert_close(H @ V, posed.oracle.hvp(V), f"{name}, {loss}")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "lstm"])
def test_hessian_in_single_precision_agrees_with_double(name, loss, device):
    double, single = pose(name, loss), pose(name, loss, device=device, dtype=torch.float32)
    V = double.vectors()
    H = cx.HessianOperator(single.model, single.loss, single.cut(2, 3))
    assert_close(H @ single.vectors(), double.oracle.hvp(V), f"{name}, {loss}")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_hessian_is_gauss_newton_plus_model_curvature(name, device):
    posed = pose(name, "ce", device=device)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    V = posed.vectors()
    H, G, R = risk.hessian() @ V, risk.ggn() @ V, risk.model_curvature() @ V
    assert_close(H, G + R, name)
    if not CASES[name].by_differences:
        assert_close(
            R, posed.oracle.hvp(V) - posed.oracle.ggn() @ V, name, scale=float(H.abs().max())
        )


def test_products_of_one_risk_do_not_depend_on_their_order(device):
    """H and R switch the output Hessian in one kept graph on and off."""
    posed = pose("mlp", "ce", device=device)
    V = posed.vectors()
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data, cache=True)
    H, R, G = risk.hessian(), risk.model_curvature(), risk.ggn()
    first = (H @ V, R @ V, G @ V)
    again = (G @ V, R @ V, H @ V)[::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


def test_model_curvature_vanishes_for_a_model_that_is_linear_in_its_parameters(device):
    posed = pose("linear", "ce", device=device)
    product = cx.ModelCurvatureOperator(posed.model, posed.loss, posed.data) @ posed.vectors()
    assert torch.equal(product, torch.zeros_like(product))


def test_dense_hessian_has_columns_in_the_order_of_named_parameters(device):
    posed = pose("mlp", "ce", device=device)
    H = cx.HessianOperator(posed.model, posed.loss, posed.data)
    assert list(H.param_shapes) == [name for name, _ in posed.model.named_parameters()]
    eye = torch.eye(posed.oracle.size).to(posed.oracle.output)
    assert_close(H.to_dense(), posed.oracle.hvp(eye))


def test_hessian_of_a_language_model_is_right(device):
    posed = pose_language_model(device)
    V = posed.vectors()
    H = cx.HessianOperator(posed.model, posed.loss, posed.cut(1, 2))
    assert_close(H @ V, posed.oracle.hvp(V))


def test_hessian_can_be_restricted_to_some_parameters(device):
    posed = pose("encoder_layer", "ce", device=device)
    names = [n for n, _ in posed.model.named_parameters() if "norm" in n]
    oracle = type(posed.oracle)(posed.model, posed.loss, posed.x, posed.y, names)
    V = posed.vectors()[: oracle.size]
    H = cx.HessianOperator(posed.model, posed.loss, posed.data, params="*norm*")
    assert list(H.param_shapes) == names
    assert_close(H @ V, oracle.hvp(V))


def test_every_sample_counts_once_whatever_the_batch_size(device):
    posed = pose("conv2d", "ce_weight_ignore_smooth", device=device)
    V = posed.vectors()
    whole = cx.HessianOperator(posed.model, posed.loss, posed.data) @ V
    for sizes in ([N - 1, 1], [1] * N, [2, 2, 1]):
        assert_close(
            cx.HessianOperator(posed.model, posed.loss, posed.cut(*sizes)) @ V, whole, str(sizes)
        )


def test_that_a_network_needs_another_way_is_found_once_for_all_its_risks():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    data = (torch.randn(5, 3), torch.randint(2, (5,)))
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    for expected in (2, 1, 1):
        runs.clear()
        cx.HessianOperator(model, torch.nn.CrossEntropyLoss(), data) @ torch.ones(26)
        assert len(runs) == expected


def test_second_derivatives_after_a_product_that_needed_first_ones_alone():
    posed = pose("mlp")
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.data)
    v = torch.randn(risk.space.size, dtype=torch.float64)
    alone = cx.HessianOperator(posed.model, posed.loss, posed.data) @ v
    risk.ggn() @ v
    assert_close(risk.hessian() @ v, alone)
    assert_close(risk.model_curvature() @ v, alone - risk.ggn() @ v)
