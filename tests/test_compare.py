"""The helper and the oracles see a planted error."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from oracles import Oracle
from torch import nn


@pytest.mark.parametrize("dtype, planted", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_relative_error_above_the_tolerance_is_seen(dtype, planted):
    right = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    assert_close(right.clone(), right)
    wrong = right.clone()
    wrong[2] += planted * 2
    with pytest.raises(AssertionError, match="norms: error"):
        assert_close(wrong, right, "norms")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_seen(bad):
    with pytest.raises(AssertionError, match="error"):
        assert_close(torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0]))


def test_another_shape_is_seen_and_never_broadcast():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(1), torch.ones(3))


def test_anything_but_zero_is_seen_where_zero_is_expected():
    with pytest.raises(AssertionError, match="error"):
        assert_close(torch.tensor([1e-30]), torch.zeros(1))


def test_the_oracle_of_least_squares_is_the_textbook_matrix():
    """For f = Xw and L = mean (f − y)²: H = G = 2 XᵀX / N, and g_n = 2 (f_n − y_n) x_n."""
    x = torch.randn(6, 3, dtype=torch.float64)
    y = torch.randn(6, 1, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    oracle = Oracle(model, nn.MSELoss(), x, y)
    assert_close(oracle.ggn(), 2 * x.T @ x / 6)
    assert_close(oracle.hvp(torch.eye(3, dtype=torch.float64)), 2 * x.T @ x / 6)
    assert_close(oracle.sample_gradients(), 2 * (model(x) - y) * x)


def test_the_oracle_of_logistic_regression_is_the_textbook_matrix():
    """For z = Xw and cross-entropy of (z, 0): H = Xᵀ diag(p (1 − p)) X / N."""
    x = torch.randn(6, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ConstantPad1d((0, 1), 0.0)).double()
    oracle = Oracle(model, nn.CrossEntropyLoss(), x, torch.tensor([0, 1, 0, 1, 1, 0]))
    p = torch.sigmoid(model(x)[:, 0]).detach()
    assert_close(oracle.ggn(), x.T @ torch.diag(p * (1 - p)) @ x / 6)


def test_finite_differences_agree_with_double_backward_to_their_bound():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    oracle = Oracle(
        model, nn.CrossEntropyLoss(), torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    )
    v = torch.randn(26, 2, dtype=torch.float64)
    assert_close(oracle.hvp_by_differences(v), oracle.hvp(v), tol=1e-8)
