"""What makes a model's risk ill-defined is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from models import Model
from oracles import Oracle
from torch import nn

import curvext as cx


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.Dropout(0.5), "'1' .Dropout. is in training mode"),
        (nn.AlphaDropout(0.1), "AlphaDropout"),
        (nn.BatchNorm1d(4), "BatchNorm1d.*statistics of the batch"),
        (nn.LSTM(4, 4, 2, dropout=0.5), "random|training"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
@pytest.mark.parametrize("kind", ["gradient", "diagonal"])
def test_random_or_coupled_layers_in_training_mode_are_refused(kind, layer, message):
    if isinstance(layer, nn.LSTM):
        model = Model(lambda s, x: s.l(x)[0], l=layer)
    else:
        model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4))
    risk = cx.EmpiricalRisk(model.train(), nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
    with pytest.raises(RuntimeError, match=message):
        risk.gradient() if kind == "gradient" else risk.empirical_fisher().diagonal()
    model.eval()
    assert risk.gradient().isfinite().all()


def test_dropout_of_probability_zero_is_no_dropout():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train()
    assert (
        cx.EmpiricalRisk(model, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
        .gradient()
        .any()
    )


def test_functional_dropout_is_found_by_the_generator_that_moved():
    model = Model(lambda s, x: F.dropout(s.a(x), 0.5, training=True), a=nn.Linear(4, 3)).eval()
    state = torch.get_rng_state()
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), (torch.zeros(5, 4), torch.zeros(5, 3)))
    with pytest.raises(RuntimeError, match="drew random numbers"):
        risk.gradient()
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(RuntimeError, match="no running statistics"):
        cx.EmpiricalRisk(model, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 3))).gradient()


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq"])
def test_an_embedding_whose_gradient_is_no_derivative_is_refused(option):
    value = 1.0 if option == "max_norm" else True
    model = nn.Sequential(nn.Embedding(6, 4, **{option: value}), nn.Flatten())
    with pytest.raises(RuntimeError, match=option):
        cx.EmpiricalRisk(
            model, nn.MSELoss(), (torch.randint(6, (5, 1)), torch.randn(5, 4))
        ).gradient()


def test_sparse_embedding_gradients_are_handled(device):
    sparse = (
        nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3))
        .double()
        .to(device)
    )
    dense = copy.deepcopy(sparse)
    dense[0].sparse = False
    x, y = torch.randint(6, (5, 3)).to(device), torch.randint(3, (5,)).to(device)
    loss = nn.CrossEntropyLoss()
    oracle = Oracle(dense, loss, x, y)
    risk = cx.EmpiricalRisk(sparse, loss, (x, y))
    assert_close(risk.gradient(), oracle.gradient())
    assert_close(risk.empirical_fisher().diagonal(), oracle.empirical_fisher().diagonal())
    V = torch.randn(oracle.size, 2).to(oracle.output)
    assert_close(risk.ggn() @ V, oracle.ggn() @ V)
    assert_close(risk.hessian() @ V, oracle.hvp(V))
