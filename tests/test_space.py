"""Which parameters, in which order, and flat ↔ named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvext.space import ParameterSpace


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2, bias=False))


NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight")


def test_the_order_is_that_of_named_parameters():
    space = ParameterSpace(network())
    assert space.names == NAMES and space.size == 16
    flat = torch.nn.utils.parameters_to_vector(space.parameters.values())
    assert torch.equal(space.flatten(space.parameters), flat)


@pytest.mark.parametrize(
    "params, chosen",
    [
        (None, NAMES),
        ("1.bias", ("1.bias",)),
        ("*weight", ("0.weight", "1.weight", "2.weight")),
        (["2.*", "0.bias"], ("0.bias", "2.weight")),
        (("?.bias",), ("0.bias", "1.bias")),
        ((n for n in ["1.bias"]), ("1.bias",)),
        (lambda name, p: p.ndim == 2, ("0.weight", "2.weight")),
    ],
    ids=lambda v: None if callable(v) or hasattr(v, "send") else str(v),
)
def test_parameters_are_selected_in_the_model_s_order(params, chosen):
    assert ParameterSpace(network(), params).names == chosen


def test_none_selects_what_requires_grad_and_a_name_selects_what_it_names():
    model = network()
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in ParameterSpace(model).names
    assert ParameterSpace(model, "0.weight").names == ("0.weight",)


def test_a_tied_parameter_stands_once_under_its_first_name():
    model = network()
    model[2].weight = nn.Parameter(torch.randn(2, 2))
    model.append(nn.Linear(2, 2, bias=False))
    model[3].weight = model[2].weight
    assert ParameterSpace(model).names == NAMES
    assert ParameterSpace(model, "3.weight").names == ("2.weight",)


@pytest.mark.parametrize("tail", [(), (4,)])
def test_split_and_flatten_are_inverse(tail):
    space = ParameterSpace(network())
    v = torch.randn(16, *tail)
    named = space.split(v)
    assert {n: tuple(t.shape) for n, t in named.items()} == {
        n: (*s, *tail) for n, s in space.shapes.items()
    }
    if not tail:
        assert torch.equal(space.flatten(named), v)
        assert torch.equal(space.flatten(dict(reversed(named.items()))), v)
    else:
        for k in range(4):
            assert torch.equal(space.flatten({n: t[..., k] for n, t in named.items()}), v[:, k])


def test_split_gives_views():
    space = ParameterSpace(network())
    v = torch.zeros(16)
    space.split(v)["1.bias"].fill_(1)
    assert v.sum() == 2


@pytest.mark.parametrize("shape", [(15,), (17, 2), (16, 2, 2), ()])
def test_split_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"split: expected a vector \[16\] or matrix \[16, K\]"):
        ParameterSpace(network()).split(torch.zeros(shape))


def test_flatten_refuses_other_names_and_shapes():
    space = ParameterSpace(network())
    named = space.split(torch.zeros(16))
    with pytest.raises(ValueError, match=r"missing \['0.bias'\]"):
        space.flatten({n: t for n, t in named.items() if n != "0.bias"})
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        space.flatten({**named, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'0.weight': expected shape \[2, 3\], got \[3, 2\]"):
        space.flatten({**named, "0.weight": torch.zeros(3, 2)})
    with pytest.raises(TypeError, match="'0.weight': expected a tensor, got list"):
        space.flatten({**named, "0.weight": [0.0] * 6})
    with pytest.raises(TypeError, match="flatten: expected {name: tensor}, got NoneType"):
        space.flatten(None)


@pytest.mark.parametrize(
    "params, error, message",
    [
        ("3.weight", ValueError, "'3.weight' matches no parameter; the model has"),
        (["0.weight", "no*"], ValueError, r"'no\*' matches no parameter"),
        ([], ValueError, "no parameter is selected"),
        (lambda n, p: False, ValueError, "no parameter is selected"),
        (3, TypeError, "expected None, a name, glob patterns or a predicate, got int"),
        ([3], TypeError, "expected names or glob patterns, got int"),
    ],
)
def test_a_selection_of_nothing_is_refused(params, error, message):
    with pytest.raises(error, match=message):
        ParameterSpace(network(), params)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="none of the model's parameters requires grad"):
        ParameterSpace(network().requires_grad_(False))


def test_mixed_dtypes_are_refused_and_one_of_them_can_be_selected():
    model = network()
    model[2].double()
    with pytest.raises(
        TypeError, match="'2.weight' has dtype torch.float64 but '0.weight' has torch.float32"
    ):
        ParameterSpace(model)
    assert ParameterSpace(model, "2.weight").dtype is torch.float64


def test_complex_parameters_are_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="complex64; real floating point is needed"):
        ParameterSpace(model)


def test_lazy_parameters_are_refused_until_the_model_has_run():
    with pytest.raises(ValueError, match="not initialised; run the model once"):
        ParameterSpace(nn.LazyLinear(3))


@pytest.mark.parametrize("model", [network().forward, "model", None])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got"):
        ParameterSpace(model)


def test_a_module_or_its_name_selects_all_of_its_parameters():
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)),
            "body_norm": nn.LayerNorm(3),
            "head": nn.Linear(3, 1),
        }
    )
    body = [n for n, _ in model.named_parameters() if n.startswith("body.")]
    for params in ("body", model["body"], [model["body"]], iter(["body"]), "body.*"):
        assert list(ParameterSpace(model, params).names) == body
    both = ParameterSpace(model, [model["head"], "body.0"]).names
    assert both == ("body.0.weight", "body.0.bias", "head.weight", "head.bias")
    assert ParameterSpace(model, model).names == tuple(n for n, _ in model.named_parameters())
    with pytest.raises(ValueError, match="params: the module Linear is no part of the model"):
        ParameterSpace(model, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="params: the module Tanh has no parameters"):
        ParameterSpace(model, [nn.Tanh()])
