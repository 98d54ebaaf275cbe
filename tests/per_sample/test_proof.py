"""Where samples lie: every rule of data flow against the Jacobian, and proofs that hold for no other values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from facets import INDEX, N, proof_and_truth
from torch import nn

from curvext.graph.autograd_graph import Graph
from curvext.per_sample.proof import prove
from curvext.samples import owners as own
from curvext.samples.layout import Layout, RaggedLayout, layouts_of


def test_a_function_of_ones_own_may_do_anything():
    class Mul(torch.autograd.Function):  # called like an operation of PyTorch
        @staticmethod
        def forward(ctx, x):
            return x.flip(0)

        @staticmethod
        def backward(ctx, g):
            return g.flip(0)

    owners, _ = proof_and_truth((N, 3), Mul.apply)
    assert owners is None


@pytest.mark.parametrize(
    "first, second",
    [
        (lambda x: x[INDEX], lambda x: x[INDEX.flip(0)]),
        (lambda x: x.roll(1, 0), lambda x: x.roll(2, 0)),
        (lambda x: x.view(N, 2, 3).sum(1), lambda x: x.view(2, N, 3).transpose(0, 1).sum(1)),
        (lambda x: x[:N], lambda x: x[N:]),
        (lambda x: x.T.sum(1), lambda x: x.T.sum(0)),
    ],
)
def test_a_proof_does_not_hold_where_what_it_read_is_different(first, second):
    shape = (2 * N, 2 * N) if first(torch.ones(2 * N, 3)).ndim == 1 else (2 * N, 3)
    leaf = torch.randn(shape, requires_grad=True)
    graphs = [Graph(call(leaf * 1), [leaf]) for call in (first, second, first)]
    proof = prove(graphs[0], len(first(leaf)))
    assert proof.holds(graphs[0])
    assert proof.holds(graphs[2])
    if graphs[0].signature == graphs[1].signature:
        assert not proof.holds(graphs[1])


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    "entries, layout",
    [
        ([0, 0, 1, 1, 2, 2], Layout(0, True)),
        ([0, 1, 2, 0, 1, 2], Layout(0, False)),
        ([0, -1, 1, 1, -1, 2], Layout(0, True)),
    ],
)
def test_regular_rows_have_a_regular_layout(entries, layout):
    assert layouts_of(np.array(entries)[:, None], (6, 5), 3) == (layout,)


def test_rows_in_any_number_are_filled_up_with_zeros():
    (layout,) = layouts_of(np.array([2, 0, 0, -1, 2, 2, 1])[:, None], (7, 2), 3)
    assert isinstance(layout, RaggedLayout)
    x = torch.arange(1.0, 15).view(7, 2)
    by_sample = layout.samples_first(x, 3)
    expected = torch.zeros(3, 3, 2)
    expected[0, :2], expected[1, :1], expected[2] = x[[1, 2]], x[[6]], x[[0, 4, 5]]
    assert torch.equal(by_sample, expected)
    turned = layout.along(1).samples_first(x.T, 3)
    assert torch.equal(turned, expected.transpose(1, 2))


def test_owners_of_a_view_are_found_by_its_elements():
    owner = np.array([0, 0, 1, 1, 2, 2])[:, None, None]
    full = np.broadcast_to(owner, (6, 2, 5))
    for target in [(6, 10), (3, 2, 2, 5), (60,), (3, 20), (12, 5), (1, 6, 1, 10), (3, 4, 5)]:
        found = own.reshaped(owner, (6, 2, 5), target)
        assert np.array_equal(np.broadcast_to(found, target), full.reshape(target))


def test_a_module_list_of_experts_is_apart_by_indices():
    """The whole way: what risk.explain() says of experts."""
    import curvext as cx

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(3, 2)
            self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

        def forward(self, x):
            chosen = self.gate(x).argmax(1)
            out = self.gate(x) * 0.5
            for number, expert in enumerate(self.experts):
                rows = (chosen == number).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(x[rows]))
            return out

    torch.manual_seed(0)
    data = (torch.randn(6, 3), torch.randint(2, (6,)))
    told = cx.EmpiricalRisk(Experts(), nn.CrossEntropyLoss(), data).explain()
    assert "experts.0.weight  fused, by indices" in " ".join(told.split(" ")), told
