"""G is the Hessian of the loss of the linearised model."""

from __future__ import annotations

import itertools

import pytest
import torch
from compare import assert_close
from models import GRID
from problems import LOSSES, pose, pose_language_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import curvext as cx
from curvext.gradients import outer_product


@pytest.mark.parametrize("name, loss", GRID)
def test_ggn_product_is_the_hessian_of_the_linearised_model(name, loss, device):
    posed = pose(name, loss, device=device)
    V = posed.vectors()
    assert_close(
        cx.GGNOperator(posed.model, posed.loss, posed.data) @ V, posed.oracle.ggn() @ V, name
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "image_logits", "sequence_logits"])
def test_ggn_is_right_for_every_loss_in_uneven_batches(name, loss, reduction, device):
    posed = pose(name, loss, reduction, device)
    V = posed.vectors()
    G = cx.GGNOperator(posed.model, posed.loss, posed.cut(2, 1, 2))
    assert_close(G @ V, posed.oracle.ggn() @ V, f"{name}, {loss}")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer", "lstm"])
def test_ggn_in_single_precision_agrees_with_double(name, loss, device):
    double, single = pose(name, loss), pose(name, loss, device=device, dtype=torch.float32)
    G = cx.GGNOperator(single.model, single.loss, single.cut(2, 3))
    assert_close(G @ single.vectors(), double.oracle.ggn() @ double.vectors(), f"{name}, {loss}")


@pytest.mark.parametrize("loss", [n for n in LOSSES if n not in ("custom",)])
def test_ggn_of_a_convex_loss_has_no_negative_eigenvalue(loss, device):
    posed = pose("mlp", loss, device=device)
    values = torch.linalg.eigvalsh(cx.GGNOperator(posed.model, posed.loss, posed.data).to_dense())
    assert values[0] >= -1e-14 * values[-1] > -1
    assert values[-1] > 0


def test_ggn_of_a_loss_that_is_not_convex_keeps_its_negative_curvature(device):
    posed = pose("mlp", "custom", device=device)
    assert (
        torch.linalg.eigvalsh(cx.GGNOperator(posed.model, posed.loss, posed.data).to_dense())[0]
        < -1e-3
    )


@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}, {"ignore_index": 2}]
)
def test_ggn_of_a_language_model_is_right(options, device):
    posed = pose_language_model(device, **options)
    V = posed.vectors()
    G = cx.GGNOperator(posed.model, posed.loss, posed.cut(2, 1))
    assert_close(G @ V, posed.oracle.ggn() @ V)


def test_ggn_equals_the_hessian_where_the_residuals_vanish(device):
    posed = pose("mlp", "mse", device=device)
    data = (posed.x, posed.model(posed.x).detach())
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data)
    V = posed.vectors()
    assert_close(risk.hessian() @ V, risk.ggn() @ V)
    assert_close(risk.gradient(), torch.zeros_like(V[:, 0]))


@pytest.mark.parametrize("method", ["diagonal", "trace"])
def test_a_summary_without_closed_form_raises_and_names_what_to_use(method, device):
    from curvext.errors import NoClosedFormError

    posed = pose("mlp", device=device)
    H = cx.HessianOperator(posed.model, posed.loss, posed.data)
    with pytest.raises(NoClosedFormError, match=rf"{method}: .*curvext\.{method}\(A\)"):
        getattr(H, method)()
    assert torch.allclose(
        getattr(cx, method)(H, probes=H.size).value, getattr(H.to_dense(), method)()
    )


def test_exact_diagonal_takes_one_product_by_weight_however_many_classes(monkeypatch):
    widths, N = (6, 8, 7, 5), 4
    layers = [nn.Linear(i, o, bias=False) for i, o in itertools.pairwise(widths)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    data = (torch.randn(N, widths[0]), torch.randint(widths[-1], (N,)))
    cx.ggn_diagonal(model, nn.CrossEntropyLoss(), data)  # learns where samples lie
    first, *others = (2 * N * w.numel() for w in model.parameters())
    taken, square = [], outer_product.outer_square

    def counted(a, g):
        taken.append((len(g), g.shape[3], a.shape[2]))
        return square(a, g)

    monkeypatch.setattr(outer_product, "outer_square", counted)
    with FlopCounterMode(display=False) as counter:
        cx.ggn_diagonal(model, nn.CrossEntropyLoss(), data)
    # one kernel call takes the squares of a weight for all classes; it is an operation that this counter does not know
    assert sorted(taken) == sorted((widths[-1], o, i) for i, o in itertools.pairwise(widths))
    # the forward pass; and down to the first layer once for each class
    assert counter.get_total_flops() == first + sum(others) + widths[-1] * sum(others)


def test_exact_diagonal_of_a_weight_that_is_used_in_parts(device):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 4))

        def forward(self, x):
            # the parts meet the same x, and lie in the other order than they are used
            return torch.tanh(x @ self.w[2:4].T) * (x @ self.w[4:].T) + x @ self.w[:2].T

    torch.manual_seed(0)
    model = Halves().to(device, torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    data = (x, torch.randint(2, (5,), device=device))
    G = cx.GGNOperator(model, nn.CrossEntropyLoss(), data)
    assert_close(G.diagonal(), G.to_dense().diagonal())
