"""Operators follow the model; what they return stays."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from problems import pose

import curvext as cx

pytestmark = pytest.mark.usefixtures("one_thread")

MAKES = ["kfac", "ekfac", "shampoo", "block_diagonal"]


@pytest.mark.parametrize("cache", ["auto", False])
@pytest.mark.parametrize("make", MAKES)
def test_an_operator_follows_the_model_and_what_it_returned_stays(make, cache):
    p = pose("mlp")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.cut(2, 3), cache=cache)
    B = getattr(risk, make)(kind="exact")
    before = B.to_dense()
    inverse, root, blocks, factors = B.inverse(0.1), B.power(-0.5, 0.1), B.blocks, B.factors
    kept = [inverse.to_dense(), root.to_dense(), factors["2.weight"].g.clone()]
    with torch.no_grad():
        for q in p.model.parameters():
            q.mul_(1.5)
    after = B.to_dense()
    fresh = getattr(cx.EmpiricalRisk(p.model, p.loss, p.data), make)(kind="exact").to_dense()
    assert_close(after, fresh)
    assert not torch.allclose(before, after)
    assert torch.equal(inverse.to_dense(), kept[0]) and torch.equal(root.to_dense(), kept[1])
    assert torch.equal(factors["2.weight"].g, kept[2])
    here = B._indices(blocks["2.weight"])
    assert torch.equal(blocks["2.weight"].to_dense(), before[here][:, here])


@pytest.mark.parametrize("make", MAKES)
def test_factors_are_made_once_while_nothing_changes(make, monkeypatch):
    p = pose("mlp")
    risk = cx.EmpiricalRisk(p.model, p.loss, p.data)
    B = getattr(risk, make)()
    passes = []
    visit = type(risk)._pass
    monkeypatch.setattr(type(risk), "_pass", lambda self, one: passes.append(1) or visit(self, one))
    B.trace()
    first = len(passes)
    assert 1 <= first <= 2
    v = torch.ones(B.shape[0], dtype=torch.float64)
    B @ v, B.solve(v, 0.1), B.eigenvalues(), getattr(risk, make)().diagonal()
    assert len(passes) == first


@pytest.mark.parametrize("make", MAKES)
def test_each_class_stands_alone_and_two_calls_give_equal_bits(make):
    p = pose("conv2d_groups")
    kinds = {
        "kfac": cx.KFACOperator,
        "ekfac": cx.EKFACOperator,
        "shampoo": cx.ShampooOperator,
        "block_diagonal": cx.BlockDiagonalOperator,
    }
    one = kinds[make](p.model, p.loss, p.cut(2, 3), kind="mc", samples=2, seed=5, reduction="mean")
    two = kinds[make](p.model, p.loss, p.cut(2, 3), kind="mc", samples=2, seed=5)
    assert torch.equal(one.to_dense(), two.to_dense())
    assert not torch.equal(one.to_dense(), kinds[make](p.model, p.loss, p.data, seed=6).to_dense())
    assert one.param_shapes == dict(cx.EmpiricalRisk(p.model, p.loss, p.data).space.shapes)
    owner = kinds[make].__name__
    with pytest.raises(
        TypeError, match=f"{owner}: there is no argument 'sead'; did you mean 'seed'"
    ):
        kinds[make](p.model, p.loss, p.data, sead=1)
    risk = cx.EmpiricalRisk(p.model, p.loss, p.data)
    with pytest.raises(
        TypeError, match=f"{owner}: there is no argument 'sead'.*it takes kind, samples, seed"
    ):
        getattr(risk, make)(sead=1)


@pytest.mark.parametrize("make", MAKES)
def test_the_model_is_left_as_found(make):
    p = pose("cnn")
    state = {k: v.clone() for k, v in p.model.state_dict().items()}
    seed = torch.get_rng_state()
    getattr(cx.EmpiricalRisk(p.model, p.loss, p.data), make)().sample(2, 0.1)
    assert all(torch.equal(v, state[k]) for k, v in p.model.state_dict().items())
    assert all(q.grad is None for q in p.model.parameters())
    assert torch.equal(seed, torch.get_rng_state())


def test_a_loss_that_reaches_nothing_of_a_layer_gives_a_zero_block():
    p = pose("unused")
    K = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac()
    assert K.blocks["b.weight"].structure == "diagonal"
    assert float(K.blocks["b.weight"].to_dense().abs().max()) == 0
    assert "the loss does not reach it" in K.explain()


def test_explain_names_every_parameter_and_why_it_has_its_structure():
    p = pose("tied")
    text = cx.EmpiricalRisk(p.model, p.loss, p.data).kfac().explain()
    assert "emb.weight" in text and "used in two roles" in text
    assert "mix.weight, mix.bias" in text and "kronecker 4 x 5" in text
    text = cx.EmpiricalRisk(*[getattr(pose("conv2d_groups"), n) for n in ("model", "loss", "data")])
    assert "kronecker 2 groups of 2 x 13" in text.kfac().explain()
    text = cx.EmpiricalRisk(*[getattr(pose("embedding"), n) for n in ("model", "loss", "data")])
    assert "4 x 6 (diagonal)" in text.kfac().explain()


def test_a_bias_that_goes_its_own_way_in_one_batch_has_its_exact_block_in_every_order():
    """In one batch the bias is added elsewhere too, so that (W, b) is no block of one product there."""

    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h) + (self.a.bias if len(x) == 3 else 0)

    model = Branching().double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
    cut = [(x[:2], y[:2]), (x[2:], y[2:])]
    loss = torch.nn.CrossEntropyLoss()
    dense = []
    for data in (cut, cut[::-1]):
        risk = cx.EmpiricalRisk(model, loss, data)
        K, M = risk.kfac(kind="empirical"), risk.empirical_fisher().to_dense()
        block = K.blocks["a.bias"]
        assert block.structure == "dense" and K.blocks["a.weight"].params == ("a.weight",)
        here = K._indices(block)
        assert_close(block.to_dense(), M[here][:, here], "the bias's block")
        dense.append(K.to_dense())
    assert_close(dense[0], dense[1])
