"""Exact blocks against those of the dense matrices."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import CASES
from problems import pose

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["exact", "mc", "empirical", "ggn", "hessian"]


def dense(risk, kind):
    return {
        "exact": risk.fisher,
        "mc": risk.mc_fisher,
        "empirical": risk.empirical_fisher,
        "ggn": risk.ggn,
        "hessian": risk.hessian,
    }[kind]().to_dense()


def cut(matrix, D):
    out = torch.zeros_like(matrix)
    for block in D.blocks.values():
        here = D._indices(block).unsqueeze(1)
        out[here, here.T] = matrix[here, here.T]
    return out


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_the_dense_matrix(name):
    p = pose(name)
    data = p.data if CASES[name].coupled else p.cut(2, 3)
    risk = cx.EmpiricalRisk(p.model, p.loss, data)
    kind = ["exact", "mc", "empirical", "ggn"][len(name) % 4]
    D = risk.block_diagonal(kind=kind, blocks="module")
    assert_close(D.to_dense(), cut(dense(risk, kind), D))


@pytest.mark.parametrize(
    "blocks", ["parameter", "module", [["0.weight", "2.bias"], ["2.weight", "0.bias"]]]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_every_choice_of_blocks(kind, blocks):
    p = pose("mlp")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(1, 4))
    M, D = dense(risk, kind), risk.block_diagonal(kind=kind, blocks=blocks)
    assert_close(D.to_dense(), cut(M, D), scale=float(M.abs().max()))
    v = torch.randn(len(M), dtype=M.dtype)
    assert_close(D @ v, cut(M, D) @ v)
    if blocks not in ("parameter", "module"):
        assert D.blocks["0.weight"].params == ("0.weight", "2.bias")
        assert D.blocks["0.bias"].params == ("0.bias", "2.weight")
    limited = risk.block_diagonal(kind=kind, blocks=blocks, max_dim=10)
    assert_close(limited.diagonal(), M.diagonal(), scale=float(M.abs().max()))
    for block in limited.blocks.values():
        assert block.structure == ("dense" if block.size <= 10 else "diagonal")


def test_ggn_of_a_loss_that_is_not_convex_may_be_indefinite():
    p = pose("mlp", "custom")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.data)
    D = risk.block_diagonal(kind="ggn", blocks="module")
    assert_close(D.to_dense(), cut(risk.ggn().to_dense(), D))
    assert float(D.eigenvalues()[0]) < -1e-6


@pytest.mark.parametrize(
    "blocks, words",
    [
        ("layer", "expected 'parameter', 'module' or lists of names, got 'layer'"),
        (3, "expected 'parameter', 'module' or lists of names, got 3"),
        ([["0.weight"]], "missing \\['0.bias', '2.weight', '2.bias'\\]"),
        ([["0.weight", "0.bias", "2.weight", "2.bias", "3"]], "unknown \\['3'\\]"),
        ([["0.weight", "0.bias"], ["2.weight", "2.bias", "0.bias"]], "twice \\['0.bias'\\]"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks, words):
    p = pose("mlp")
    with pytest.raises(ValueError, match=f"BlockDiagonalOperator: blocks: .*{words}"):
        cx.EmpiricalRisk(p.model, p.loss, p.data).block_diagonal(blocks=blocks)
