"""Models that are run in a way of their own: checkpointed, or compiled."""

from __future__ import annotations

import pytest
import torch
from answers import assert_all_close, everything
from compare import assert_close
from models import Model
from oracles import Oracle
from problems import pose
from torch import nn
from torch.utils.checkpoint import checkpoint

import curvext as cx


def parts_of_checkpointing():
    module = torch.utils.checkpoint
    return module.CheckpointFunction.apply, module._checkpoint_hook


@pytest.mark.parametrize("options", [{}, {"params": "b.*"}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_answer(reentrant, options, device):
    """With ``params="b.*"`` nothing before the block requires a gradient, which the reentrant variant needs."""
    posed = pose("layer_norm", device=device)
    first, *block, last = posed.model

    def call(s, x):
        return s.last(checkpoint(s.b, s.first(x), use_reentrant=reentrant))

    model = Model(call, first=first, b=nn.Sequential(*block), last=last)
    named = dict(model.named_parameters())
    names = [n for n in named if options.get("params") is None or n.startswith("b.")]
    oracle = Oracle(posed.model, posed.loss, posed.x, posed.y)
    oracle.leaves = [named[n] for n in names]
    oracle.size = sum(p.numel() for p in oracle.leaves)
    V = posed.vectors()[: oracle.size]
    H, G, E = oracle.hvp(V), oracle.ggn(), oracle.empirical_fisher()
    norms = oracle.sample_gradients().norm(dim=1)
    expected = [H, G @ V, H - G @ V, E @ V, oracle.gradient(), E.diagonal(), norms, E.trace()]
    before = parts_of_checkpointing()
    risk = cx.EmpiricalRisk(model, posed.loss, posed.data, **options)
    assert_all_close(everything(risk, V), expected)
    assert_all_close(everything(risk, V), expected)
    assert_close(risk.ggn().diagonal(), G.diagonal())
    # afterwards the model checkpoints again
    assert parts_of_checkpointing() == before
    runs = []
    block[0].register_forward_hook(lambda *_: runs.append(1))
    x = posed.x.detach().requires_grad_()
    posed.loss(model(x), posed.y).backward()
    assert len(runs) == 2


@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_has_the_curvature_of_the_model_and_all_fast_paths(in_place, device):
    posed = pose("attention", device=device)
    V = posed.vectors()
    expected = posed.oracle.hvp(V), posed.oracle.ggn() @ V
    model = posed.model
    if in_place:
        model.compile(backend="aot_eager")
    else:
        model = torch.compile(model, backend="aot_eager")
    model(posed.x)  # compiled for use outside
    risk = cx.EmpiricalRisk(model, posed.loss, (posed.x, posed.y))
    assert_close(risk.hessian() @ V, expected[0])
    assert_close(risk.ggn() @ V, expected[1])
    assert "general" not in risk.explain()
