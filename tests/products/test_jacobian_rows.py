"""The rows g_n of the empirical Fisher by product: R v, Rᵀ c, and R R'ᵀ with other data."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import CASES, CLASSIFIERS, Model, N, par
from problems import LOSSES, pose, pose_language_model
from torch import nn

import curvext as cx
from curvext.problem import kept_records

CUTS = [[N], [1, 3, 1]]


def operator(posed, sizes=(N,), **options):
    return cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(*sizes), **options)


def weights(posed, count=2):
    return torch.randn(N, count, dtype=torch.float64).to(posed.oracle.output)


def check_rows(E, posed, what=""):
    """All three against the loop over samples."""
    g, V, c = posed.oracle.sample_gradients(), posed.vectors(), weights(posed)
    assert_close(E.products(V), g @ V, f"{what} products")
    assert_close(E.products(V[:, 0]), g @ V[:, 0], f"{what} product")
    assert_close(E.weighted(c), g.T @ c, f"{what} weighted columns")
    assert_close(E.weighted(c[:, 1]), g.T @ c[:, 1], f"{what} weighted")
    assert_close(E.gram(E), g @ g.T, f"{what} gram")


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if not CASES[n].coupled])
def test_rows_by_product_are_those_of_the_loop_over_samples(name, device):
    posed = pose(name, "ce_weight", device=device)
    check_rows(operator(posed, [2, 3]), posed, name)


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_are_in_the_units_of_the_loss(loss, reduction, sizes, cache, device):
    posed = pose("image_logits", loss, reduction, device)
    check_rows(operator(posed, sizes, cache=cache), posed, loss)


def test_a_row_of_a_language_model_is_a_sequence(device):
    posed = pose_language_model(device)
    g, V = posed.oracle.sample_gradients(), posed.vectors()
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, posed.cut(1, 2))
    assert_close(E.products(V), g @ V)


def test_products_take_a_named_vector(device):
    posed = pose("mlp", device=device)
    E, v = operator(posed), posed.vectors()[:, 0].contiguous()
    assert_close(E.products(E.split(v)), E.products(v))


def test_no_columns_give_no_columns(device):
    posed = pose("mlp", device=device)
    E = operator(posed)
    assert E.products(posed.vectors()[:, :0]).shape == (N, 0)
    assert E.weighted(weights(posed)[:, :0]).shape == (E.size, 0)


@pytest.mark.parametrize("name", ["bilinear", "mlp", "attention_bias_kv"])
def test_rows_too_large_to_write_out_go_by_the_linearisation(name, device, monkeypatch):
    monkeypatch.setattr(kept_records, "_MATERIALISED_LIMIT", -1)
    posed = pose(name, device=device)
    g, V, c = posed.oracle.sample_gradients(), posed.vectors(), weights(posed)
    E = operator(posed, [2, 3])
    assert_close(E.products(V), g @ V)
    assert_close(E.weighted(c), g.T @ c)
    with pytest.raises(ValueError, match="no fast path"):
        E.gram(E)


def test_weights_of_one_over_the_number_of_samples_give_the_gradient(device):
    posed = pose("cnn", device=device)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, posed.cut(2, 3))
    mean = torch.full((N,), 1 / N, dtype=torch.float64, device=device)
    assert_close(risk.empirical_fisher().weighted(mean), risk.gradient())


def test_products_and_weights_are_transposes(device):
    posed = pose("encoder_layer", "mse", device=device)
    E, v, c = operator(posed, [2, 3]), posed.vectors()[:, 0], weights(posed)[:, 0]
    assert_close(E.products(v) @ c, v @ E.weighted(c))


# ---------------------------------------------------------------------- the Gram matrix with others


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "bilinear", "lstm", "parametrised"])
def test_gram_with_other_data_is_that_of_both_loops(name, cache, device):
    here, there = pose(name, device=device), pose(name, device=device, samples=3)
    g, h = here.oracle.sample_gradients(), there.oracle.sample_gradients()
    E = operator(here, [2, 3], cache=cache)
    expected = g @ h.T
    assert_close(E.gram(there.cut(1, 2)), expected, "data")
    assert_close(E.gram(cx.EmpiricalRisk(here.model, here.loss, there.data)), expected, "risk")
    other = cx.EmpiricalFisherOperator(here.model, here.loss, there.cut(2, 1))
    assert_close(E.gram(other), expected, "operator")
    assert_close(other.gram(E), expected.T, "transposed")


def test_each_side_of_a_gram_matrix_has_the_units_of_its_own_loss(device):
    posed = pose("mlp", "ce", device=device)
    E = operator(posed)
    share = nn.CrossEntropyLoss(reduction="sum")
    other = cx.EmpiricalRisk(posed.model, share, posed.data)
    assert_close(E.gram(other), E.gram())  # one position a sample: N times the share is the loss
    half = cx.EmpiricalRisk(posed.model, lambda o, t: nn.functional.cross_entropy(o, t) / 2,
                            posed.data, reduction="mean")  # fmt: skip
    assert_close(E.gram(half), E.gram() / 2)


def test_gram_of_two_batches_that_use_other_parts_of_one_parameter_goes_by_its_elements(device):
    def call(s, x):
        part = s.w[:4] if bool(x[0, 0] > 0) else s.w[4:]
        return torch.tanh(x) @ part

    model = Model(call, w=par(8, 3)).to(device, torch.float64)
    x = torch.randn(4, 4, dtype=torch.float64, device=device)
    x[:2, 0], x[2:, 0] = x[:2, 0].abs() + 1, -x[2:, 0].abs() - 1
    y = torch.tensor([0, 1, 2, 0], device=device)
    E = cx.EmpiricalFisherOperator(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    gram = E.gram()
    assert float(gram[:2, 2:].abs().max()) == 0 and float(gram[:2, :2].abs().max()) > 0


def test_gram_with_other_data_goes_by_the_autocast_around_it():
    posed = pose("mlp", dtype=torch.float32)
    E = operator(posed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = E.gram(posed.cut(2, 3))
        own = E.gram()
    assert_close(mixed, own)
    assert float((own - E.gram()).abs().max()) > 1e-5 * float(own.abs().max())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", ["products", "weighted", "gram"])
def test_rows_per_token_are_refused(method, device):
    posed = pose("sequence_logits", device=device)
    E = operator(posed, per="token")
    with pytest.raises(ValueError, match=rf"{method}: per='token'"):
        getattr(E, method)(torch.ones(N, dtype=torch.float64, device=device))


def test_the_other_operator_of_gram_must_be_per_sample(device):
    posed = pose("sequence_logits", device=device)
    with pytest.raises(ValueError, match="gram: other: per='token'"):
        operator(posed).gram(operator(posed, per="token"))


@pytest.mark.parametrize(
    "c, error, message",
    [
        (torch.ones(N - 1), ValueError, rf"weighted: c: expected {N} rows.*got {N - 1}"),
        (torch.ones(N + 1, 2), ValueError, rf"weighted: c: expected {N} rows.*got {N + 1}"),
        (torch.ones(()), ValueError, r"weighted: c: expected shape \[N\] or \[N, K\], got \[\]"),
        (torch.ones(N, 1, 1), ValueError, r"expected shape \[N\] or \[N, K\]"),
        (torch.ones(N, dtype=torch.int64), TypeError, "weighted: c: expected dtype torch.float64"),
        (torch.full((N,), torch.nan), ValueError, "weighted: c: contains nan or inf"),
        ([1.0] * N, TypeError, "weighted: c: expected a tensor, got list"),
    ],
)
def test_weights_that_do_not_fit_are_refused(c, error, message):
    if isinstance(c, torch.Tensor) and c.is_floating_point():
        c = c.double()
    with pytest.raises(error, match=message):
        operator(pose("mlp"), [2, 3]).weighted(c)


def test_vectors_that_do_not_fit_are_refused():
    E = operator(pose("mlp"))
    with pytest.raises(ValueError, match=rf"products: v: expected shape \[{E.size}\]"):
        E.products(torch.ones(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="products: v: expected dtype torch.float64"):
        E.products(torch.ones(E.size))
    with pytest.raises(ValueError, match="missing"):
        E.products({})


def test_gram_refuses_what_is_no_data_and_other_parameters():
    posed = pose("mlp")
    E = operator(posed)
    with pytest.raises(TypeError, match="gram: other: data: expected a batch"):
        E.gram(3)
    with pytest.raises(TypeError, match="gram: other: expected data, a risk or.*Identity"):
        E.gram(cx.Identity(E.size))
    with pytest.raises(ValueError, match="gram: other: it is of the parameters 0.weight"):
        E.gram(operator(posed, params="0.*"))
    single = pose("mlp", dtype=torch.float32)
    with pytest.raises(ValueError, match="gram: other: its parameters have dtype torch.float32"):
        E.gram(operator(single))


class Turning:
    """Two batches that change places at every pass."""

    def __init__(self, first, second):
        self.batches = [first, second]

    def __iter__(self):
        self.batches.reverse()
        return iter(self.batches)


@pytest.mark.parametrize("by", ["gradient_norms", "products"])
def test_weights_in_another_order_than_what_they_were_made_of_are_refused(by):
    posed = pose("mlp")
    E = cx.EmpiricalFisherOperator(posed.model, posed.loss, Turning(*posed.cut(2, 3)))
    argument = [posed.vectors()[:, 0]] if by == "products" else []
    made = getattr(E, by)(*argument)
    with pytest.raises(ValueError, match="another order.*weights of samples"):
        E.weighted(made)
