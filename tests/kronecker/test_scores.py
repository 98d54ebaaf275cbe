"""Influence scores against gradients written out and a dense inverse."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from oracles import Oracle
from problems import pose, pose_language_model

import curvext as cx
from curvext.kronecker import scores as module

pytestmark = pytest.mark.usefixtures("one_thread")

DAMPING = 0.2


def expected(B, queries, gradients):
    dense = B.to_dense()
    damped = dense + DAMPING * torch.eye(len(dense), dtype=dense.dtype)
    return queries @ torch.linalg.solve(damped, gradients.T)


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("chunk", [1 << 20, 1])
@pytest.mark.parametrize("loss, reduction", [("ce_weight", "mean"), ("mse", "sum")])
@pytest.mark.parametrize("name", ["mlp", "conv2d_groups", "tied", "weight_norm", "low_rank"])
def test_scores_are_preconditioned_inner_products_of_gradients(
    name, loss, reduction, chunk, cache, monkeypatch
):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    p = pose(name, loss, reduction)
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3), cache=cache)
    K = risk.kfac(kind="empirical")
    query = p.cut(4, 1)[0]
    asked = Oracle(p.model, p.loss, p.x[:4], p.y[:4])
    wanted = expected(K, asked.sample_gradients(), p.oracle.sample_gradients())
    assert_close(K.scores(query, DAMPING), wanted, "data")
    other = cx.EmpiricalRisk(p.model, p.loss, [p.cut(4, 1)[0]])
    assert_close(K.scores(other, DAMPING, train=risk), wanted, "risks")
    assert_close(
        K.scores(p.data, DAMPING, train=query),
        expected(K, p.oracle.sample_gradients(), asked.sample_gradients()),
        "train",
    )


def test_scores_of_a_language_model():
    p = pose_language_model()
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(1, 2))
    E = risk.ekfac(kind="mc")
    g = p.oracle
    gradients = risk.empirical_fisher()
    eye = torch.eye(E.shape[0], dtype=torch.float64)
    rows = gradients.products(eye)
    assert rows.shape == (3, g.size)
    assert_close(E.scores(p.data, DAMPING), expected(E, rows, rows))


def test_a_gradient_too_large_to_be_recorded_is_pulled_back(monkeypatch):
    from curvext.problem import kept_records

    p = pose("weight_norm")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3))
    K = risk.kfac(kind="empirical")
    wanted = K.scores(p.data, DAMPING)
    monkeypatch.setattr(kept_records, "_MATERIALISED_LIMIT", 1)
    fresh = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3))
    assert_close(fresh.kfac(kind="empirical").scores(p.data, DAMPING), wanted)


def test_what_is_no_data_of_the_model_is_refused():
    p, other = pose("mlp"), pose("conv2d")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac()
    with pytest.raises(TypeError, match="scores: query: expected data or a risk, got None"):
        K.scores(None, DAMPING)
    with pytest.raises(TypeError, match="scores: train: expected data or a risk, got KFACOperator"):
        K.scores(p.data, DAMPING, train=K)
    with pytest.raises(TypeError, match="scores: query: data: expected a batch"):
        K.scores(3, DAMPING)
    with pytest.raises(ValueError, match="scores: query: it has other parameters"):
        K.scores(cx.EmpiricalRisk(other.model, other.loss, other.data), DAMPING)
    with pytest.raises(ValueError, match="damping: expected λ > 0"):
        K.scores(p.data, 0.0)
    single = pose("mlp", dtype=torch.float32)
    with pytest.raises(ValueError, match="scores: query: its parameters have dtype torch.float32"):
        K.scores(cx.EmpiricalRisk(single.model, single.loss, single.data), DAMPING)


def test_a_bar_counts_queries_where_one_is_asked_for(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    p = pose("mlp")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac()
    silent = K.scores(p.data, DAMPING)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_CHUNK", 1)
    assert_close(K.scores(p.data, DAMPING, progress=True), silent)
    shown = capsys.readouterr().err
    assert "scores" in shown and "query" in shown
