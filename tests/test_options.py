"""Keywords that operators and functions share: shown one by one, typed, and refused by the name that the user wrote."""

from __future__ import annotations

import inspect
import typing

import pytest
import torch
from torch import nn

import curvext as cx
from curvext.options import FunctionOptions, Options
from curvext.problem import Problem

DATA = (torch.eye(2), torch.zeros(2, 1))
CONSTRUCTORS = [
    cx.EmpiricalRisk,
    cx.HessianOperator,
    cx.GGNOperator,
    cx.ModelCurvatureOperator,
    cx.FisherOperator,
    cx.MCFisherOperator,
    cx.EmpiricalFisherOperator,
]
FUNCTIONS = [cx.fisher_diagonal, cx.ggn_diagonal, cx.per_sample_gradient_norms]


def keywords() -> set[str]:
    parameters = inspect.signature(Problem.__init__).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_the_typed_options_are_the_keywords_of_the_problem():
    assert set(Options.__annotations__) | set(typing.get_type_hints(Options)) == keywords()
    assert set(typing.get_type_hints(FunctionOptions)) == keywords() - {"dtype"} | {"cache"}


@pytest.mark.parametrize("callable_", [*CONSTRUCTORS, *FUNCTIONS], ids=lambda c: c.__name__)
def test_completion_shows_every_keyword(callable_):
    parameters = inspect.signature(callable_).parameters
    assert keywords() <= set(parameters)
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]


@pytest.mark.parametrize("callable_", [*CONSTRUCTORS, *FUNCTIONS], ids=lambda c: c.__name__)
def test_a_wrong_keyword_names_what_was_called_and_what_was_meant(callable_):
    with pytest.raises(
        TypeError,
        match=f"^{callable_.__name__}: there is no argument 'progres'; did you mean 'progress'",
    ):
        callable_(nn.Linear(2, 1), nn.MSELoss(), DATA, progres=True)


def test_a_subclass_of_the_users_is_named():
    class Mine(cx.GGNOperator):
        pass

    with pytest.raises(TypeError, match="^Mine: there is no argument 'zzz'[.] It takes model"):
        Mine(nn.Linear(2, 1), nn.MSELoss(), DATA, zzz=1)


def test_max_batches_is_the_risk_of_the_first_batches():
    model, loss = nn.Linear(2, 1), nn.MSELoss()
    batches = [(torch.randn(n, 2), torch.randn(n, 1)) for n in (3, 2, 4)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(9, 2), torch.randn(9, 1)), batch_size=4
    )
    for data, first in ((batches, batches[:2]), (loader, list(loader)[:2])):
        some = cx.EmpiricalRisk(model, loss, data, max_batches=2)
        assert some.value() == cx.EmpiricalRisk(model, loss, first).value()
        norms = cx.per_sample_gradient_norms(model, loss, data, max_batches=2)
        assert len(norms) == sum(len(x) for x, _ in first)
    more = cx.EmpiricalRisk(model, loss, batches, max_batches=7)
    assert more.value() == cx.EmpiricalRisk(model, loss, batches).value()
    with pytest.raises(ValueError, match="max_batches: expected an integer of at least 1, got 0"):
        cx.EmpiricalRisk(model, loss, batches, max_batches=0)


def test_the_plain_functions_take_a_cache():
    found = cx.ggn_diagonal(nn.Linear(2, 1), nn.MSELoss(), DATA, cache="auto")
    assert set(found) == {"weight", "bias"}
