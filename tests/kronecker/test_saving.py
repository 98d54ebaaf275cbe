"""Factors on disk: the same bits, and every answer without the model."""

from __future__ import annotations

import json

import pytest
import torch
from problems import pose

import curvext as cx

safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.usefixtures("one_thread")

MAKES = {
    "kfac": lambda r: r.kfac(),
    "kfac_long_sides": lambda r: r.kfac(kind="exact", max_dim=4),
    "ekfac": lambda r: r.ekfac(basis="shampoo"),
    "shampoo": lambda r: r.shampoo(kind="empirical"),
    "shampoo_root": lambda r: r.shampoo(form="root"),
    "block_diagonal": lambda r: r.block_diagonal(kind="hessian", blocks="module"),
    "inverse": lambda r: r.kfac().inverse(0.1),
    "pi": lambda r: r.kfac().inverse(0.1, method="pi"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", ["mlp", "conv2d_groups", "transposed2d", "embedding"])
def test_what_is_loaded_answers_with_the_same_bits(name, make, dtype, tmp_path):
    p = pose(name, dtype=dtype)
    K = MAKES[make](cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3)))
    path = tmp_path / "factors.safetensors"
    cx.save_factors(K, path)
    L = cx.load_factors(path)
    assert L.param_shapes == K.param_shapes and L.dtype == K.dtype and L.shape == K.shape
    for key, factors in K.factors.items():
        loaded = L.factors[key]
        assert torch.equal(loaded.g, factors.g)
        assert (loaded.a is None) == (factors.a is None)
        assert factors.a is None or torch.equal(loaded.a, factors.a)
        assert L.blocks[key].structure == K.blocks[key].structure
        assert L.blocks[key].params == K.blocks[key].params
    v = torch.randn(K.shape[0]).to(dtype)
    damping = 3.0  # over the least eigenvalue of the Hessian's blocks
    for answer in (
        lambda B: B @ v,
        lambda B: B.solve(v, damping),
        lambda B: B.diagonal(),
        lambda B: B.logdet(damping),
        lambda B: B.eigenvalues(),
        lambda B: B.sample(2, damping),
        lambda B: B.power(-0.5, damping) @ v,
        lambda B: B.flatten(B.split(v)),
    ):
        assert torch.equal(answer(L), answer(K))
    assert L.explain().splitlines()[1:] == K.explain().splitlines()[1:]


def test_sides_are_damped_after_loading_as_before(tmp_path):
    p = pose("mlp")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac()
    cx.save_factors(K, tmp_path / "k")
    one, two = (
        B.inverse(0.1, method="pi").to_dense() for B in (K, cx.load_factors(tmp_path / "k"))
    )
    assert torch.equal(one, two)
    cx.save_factors(K.inverse(0.1), tmp_path / "i")
    with pytest.raises(ValueError, match="'pi' damps Γ and A"):
        cx.load_factors(tmp_path / "i").inverse(0.1, method="pi")


def test_scores_of_loaded_factors_want_risks(tmp_path):
    p = pose("mlp")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.data)
    K = risk.kfac()
    cx.save_factors(K, tmp_path / "k")
    L = cx.load_factors(tmp_path / "k")
    assert torch.equal(L.scores(risk, 0.1, train=risk), K.scores(p.data, 0.1))
    assert torch.equal(L.scores(p.data, 0.1, train=risk), K.scores(p.data, 0.1))
    with pytest.raises(ValueError, match="scores: train: the factors were loaded.*expected a risk"):
        L.scores(risk, 0.1)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "d.safetensors"
    cx.save_diagonal({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="load_factors: path: .* was not written by save_factors"):
        cx.load_factors(path)
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(ValueError, match="load_factors: path: .* is no whole safetensors file"):
        cx.load_factors(path)
    with pytest.raises(FileNotFoundError):
        cx.load_factors(tmp_path / "absent")
    with pytest.raises(TypeError, match="load_factors: device: expected a str or torch.device"):
        cx.load_factors(path, device=3)
    with pytest.raises(
        TypeError, match="save_factors: operator: expected a block-diagonal operator"
    ):
        cx.save_factors(cx.Identity(3), path)
    p = pose("mlp")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac()
    with pytest.raises(FileNotFoundError, match="save_factors: path: there is no folder"):
        cx.save_factors(K, tmp_path / "no" / "folder")
    with pytest.raises(TypeError, match="save_factors: path: expected a str"):
        cx.save_factors(K, 3)


def test_the_file_says_what_its_tensors_are(tmp_path):
    p = pose("mlp")
    path = tmp_path / "k.safetensors"
    cx.save_factors(cx.EmpiricalRisk(p.model, p.loss, p.data).kfac(), path)
    with safetensors.safe_open(path, "pt") as file:
        keys = {"0.weight/a", "0.weight/g", "2.weight/a", "2.weight/g"}
        assert set(file.keys()) == keys | {"2.weight/rows_a"}  # five data, a side of six
        about = json.loads(file.metadata()["curvext.factors"])
    assert [block["params"] for block in about["blocks"]] == [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
    ]
