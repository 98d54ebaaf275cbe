"""A, Γ, L and R against loops over samples, vectors and positions."""

from __future__ import annotations

import pytest
import torch
from cases import NETWORKS, layers
from compare import assert_close
from layers import factors, gradients, of_group, sides, uses_of, vectors_of
from oracles import Oracle
from problems import LOSSES, Posed, loss_and_target
from torch import nn

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["exact", "mc", "empirical"]


def posed(name: str, loss: str = "ce", reduction: str = "mean") -> Posed:
    model, x = NETWORKS[name]()
    oracle = Oracle(model, None, x, None)
    oracle.loss, oracle.y = loss_and_target(loss, reduction, oracle.output)
    return Posed(model, oracle.loss, x, oracle.y, oracle)


def stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def assert_factors(p: Posed, data, kind: str, approx: str = "expand", **options) -> None:
    """Raises unless every layer's factors are those of the loops."""
    joint = options.get("bias", "joint") == "joint"
    got = cx.EmpiricalRisk(p.model, p.loss, data).kfac(kind=kind, approx=approx, **options).factors
    samples, seed = options.get("samples", 1), options.get("seed", 0)
    vectors = vectors_of(p, kind, seed, samples)
    for name, layer in layers(p.model).items():
        bias = joint and getattr(layer, "bias", None) is not None
        groups = getattr(layer, "groups", 1)
        uses = uses_of(p, layer, bias, vectors)
        parts = [
            factors(of_group(uses, k, groups, bias), approx, options.get("positions", "reached"))
            for k in range(groups)
        ]
        a, g = got[f"{name}.weight"].a, got[f"{name}.weight"].g
        expected = stacked([part[0] for part in parts])
        if a.ndim == 1:
            assert isinstance(layer, nn.Embedding) and approx == "expand"
            expected = expected.diagonal()
        assert_close(a, expected, f"A of {name}")
        assert_close(g, stacked([part[1] for part in parts]), f"Γ of {name}")


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_factors_are_the_sums_over_samples_vectors_and_positions_whatever_the_batches(
    name, kind, approx
):
    p = posed(name)
    assert_factors(p, p.cut(2, 3), kind, approx)
    assert_factors(p, p.cut(1, 1, 3), kind, approx)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "loss, reduction",
    [
        ("ce_weight_ignore_smooth", "mean"),
        ("ce_minus_100", "mean"),
        ("ce_weight", "mean"),
        ("mse", "mean"),
        ("mse", "sum"),
        ("bce", "mean"),
        ("ce_probabilities", "sum"),
    ],
)
def test_weights_smoothing_ignored_labels_and_reductions_enter_gamma_alone(loss, reduction, kind):
    assert loss in LOSSES
    p = posed("on_sequence", loss, reduction)
    assert_factors(p, p.cut(1, 4), kind)
    assert_factors(p, p.cut(4, 1), kind, "reduce")


@pytest.mark.parametrize("name", ["on_sequence", "conv2d", "embedding", "conv2d_groups"])
def test_all_positions_count_where_that_is_asked_for_but_for_padding_rows(name):
    p = posed(name, "ce_minus_100")
    assert_factors(p, p.cut(2, 3), "empirical", positions="all")
    assert_factors(p, p.cut(2, 3), "empirical", "reduce", positions="all")


def test_a_separate_bias_has_its_exact_block():
    p = posed("on_sequence")
    assert_factors(p, p.data, "exact", bias="separate")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.data)
    K, G = risk.kfac(kind="exact", bias="separate"), risk.ggn().to_dense()
    here = K._indices(K.blocks["0.bias"])
    assert K.blocks["0.bias"].structure == "dense"
    assert_close(K.blocks["0.bias"].to_dense(), G[here][:, here], "the bias's block")


def test_several_draws_are_those_of_the_monte_carlo_fisher():
    p = posed("on_sequence")
    assert_factors(p, p.cut(2, 3), "mc", samples=3, seed=7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_shampoo_has_the_sides_of_every_datums_gradient(name, kind):
    p = posed(name)
    got = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3)).shampoo(kind=kind).factors
    vectors = vectors_of(p, kind)
    for layer_name, layer in layers(p.model).items():
        bias, groups = getattr(layer, "bias", None) is not None, getattr(layer, "groups", 1)
        uses = uses_of(p, layer, bias, vectors)
        parts = [sides(of_group(uses, k, groups, bias)) for k in range(groups)]
        found = got[f"{layer_name}.weight"]
        assert_close(found.g, stacked([part[0] for part in parts]), f"L of {layer_name}")
        assert_close(found.a, stacked([part[1] for part in parts]), f"R of {layer_name}")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loops_of_this_file_give_the_true_blocks(name):
    """The oracle itself: its G_vn are the gradients of the dense Fisher matrix."""
    p = posed(name)
    F = p.oracle.ggn()
    names = [n for n, _ in p.model.named_parameters()]
    sizes = [q.numel() for q in p.model.parameters()]
    for layer_name, layer in layers(p.model).items():
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
            continue
        at = names.index(f"{layer_name}.weight")
        here = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
        rows = []
        for G in gradients(uses_of(p, layer, False, vectors_of(p, "exact"))):
            if isinstance(layer, nn.Embedding):
                G = G.T
            elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
                G = G.view(len(G), layer.in_channels, -1).transpose(0, 1)
            rows.append(G.flatten())
        rows = torch.stack(rows)
        assert_close(rows.T @ rows, F[here, here], layer_name)
