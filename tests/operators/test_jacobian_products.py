"""J v and Jᵀ u of all outputs, against torch.func and autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import curvext as cx


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def jacobian(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """∂f/∂θ ``[N, C, P]``, by torch.func."""
    parameters = dict(model.named_parameters())
    by_name = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    return torch.cat([j.reshape(*j.shape[:2], -1) for j in by_name.values()], -1).detach()


@pytest.fixture
def problem():
    model = network()
    batches = [(torch.randn(n, 3).double(), torch.zeros(n, dtype=torch.long)) for n in (4, 1, 3)]
    return model, batches, jacobian(model, torch.cat([x for x, _ in batches]))


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"params": "2"}])
def test_they_are_those_of_the_dense_jacobian_over_all_batches(problem, options):
    model, batches, J = problem
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, **options)
    J = J[..., -risk.space.size :]
    v, u = torch.randn(risk.space.size).double(), torch.randn(8, 2).double()
    for _ in range(2):  # anew and kept
        torch.testing.assert_close(risk.jvp(v), J @ v, rtol=0, atol=1e-10)
        torch.testing.assert_close(risk.vjp(u), torch.einsum("ncp,nc->p", J, u), rtol=0, atol=1e-10)


def test_columns_and_names_are_vectors_too(problem):
    model, batches, J = problem
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    V = torch.randn(risk.space.size, 3).double()
    torch.testing.assert_close(risk.jvp(V), J @ V, rtol=0, atol=1e-10)
    named = risk.ggn().split(V[:, 0].contiguous())
    torch.testing.assert_close(risk.jvp(named), J @ V[:, 0], rtol=0, atol=1e-10)


def test_they_follow_the_parameters(problem):
    model, batches, _ = problem
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    v = torch.randn(risk.space.size).double()
    risk.jvp(v)
    with torch.no_grad():
        model[0].weight.mul_(2)
    now = jacobian(model, torch.cat([x for x, _ in batches]))
    torch.testing.assert_close(risk.jvp(v), now @ v, rtol=0, atol=1e-10)


def test_half_precision_with_vectors_of_float32_keeps_small_ones():
    model = nn.Linear(2, 1, bias=False).half()
    data = (torch.eye(2).half(), torch.zeros(2, 1).half())
    risk = cx.EmpiricalRisk(model, nn.MSELoss(), data, dtype=torch.float32)
    v = torch.tensor([1e-9, 3e-9])
    torch.testing.assert_close(risk.jvp(v), v.unsqueeze(1), rtol=1e-3, atol=0)
    torch.testing.assert_close(risk.vjp(v.unsqueeze(1)), v, rtol=1e-3, atol=0)


def test_outputs_of_different_shapes_are_refused_together():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x).transpose(1, 2)

    batches = [(torch.randn(2, t, 3), torch.zeros(2, t, dtype=torch.long)) for t in (4, 5)]
    risk = cx.EmpiricalRisk(Wide(), nn.CrossEntropyLoss(), batches)
    with pytest.raises(ValueError, match=r"jvp: data: .* have shapes \[2, 4\] and \[2, 5\]"):
        risk.jvp(torch.ones(8))


@pytest.mark.parametrize(
    "u, error, message",
    [
        (torch.ones(7, 2).double(), ValueError, r"vjp: u: expected a row for each of the 8 samples, got \[7, 2\]"),
        (torch.ones(8, 3).double(), ValueError, r"vjp: u: expected outputs of shape \[2\] for each sample, got \[3\]"),
        (torch.ones(8, 2), TypeError, "vjp: u: expected dtype torch.float64"),
        ([1.0], TypeError, "vjp: u: expected a tensor, got list"),
        (torch.full((8, 2), torch.nan).double(), ValueError, "vjp: u: contains nan or inf"),
    ],
)  # fmt: skip
def test_bad_cotangents_are_named(problem, u, error, message):
    model, batches, _ = problem
    with pytest.raises(error, match=message):
        cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches).vjp(u)


def test_bad_tangents_are_named(problem):
    model, batches, _ = problem
    risk = cx.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    with pytest.raises(ValueError, match=r"jvp: v: expected shape \[32\] or \[32, K\], got \[3\]"):
        risk.jvp(torch.ones(3).double())
    with pytest.raises(ValueError, match="jvp: v: expected at least one column"):
        risk.jvp(torch.ones(32, 0).double())
