"""Stages of a traced function: each value is computed once, in the first stage that can, and little is handed on."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from curvext.products.partition import Partition

X = torch.linspace(0.5, 2.0, 12).view(3, 4)
V = torch.linspace(-1.0, 1.0, 12).view(3, 4)


class Counted:
    """Compiles by counting: which operations the code of each stage has, last stage first, and how often it ran."""

    def __init__(self):
        self.operations = []
        self.runs = []

    def __call__(self, code):
        names = {
            n.target._schema.name.removeprefix("aten::")
            for n in code.graph.nodes
            if isinstance(n.target, torch._ops.OpOverload)
        }
        self.operations.insert(0, names)
        self.runs.insert(0, 0)
        # stages are compiled from the last to the first
        place = -len(self.runs)

        def counted(*values):
            self.runs[place] += 1
            return code(*values)

        return counted


def staged(function, *inputs, arrivals, ready):
    counted = Counted()
    traced = make_fx(function)(*inputs)
    return Partition(traced, arrivals, ready, counted), counted


def two(function):
    """A function of x and v in two stages, whose one result comes with v."""
    return staged(function, X, V, arrivals=[0, 1], ready=[1])


def test_what_needs_no_later_input_is_computed_once():
    stages, counted = two(lambda x, v: [x.exp().sin() * v])
    _, kept = stages.run(0, {}, [X])
    for factor in (1.0, 2.0, 3.0):
        (got,), left = stages.run(1, kept, [factor * V])
        assert torch.equal(got, X.exp().sin() * (factor * V))
        assert left == {}
    assert counted.runs == [1, 3]
    assert counted.operations == [{"exp", "sin"}, {"mul"}]


def test_only_what_is_read_later_is_handed_on():
    stages, _ = two(lambda x, v: [x.exp().sin() * v])
    _, kept = stages.run(0, {}, [X])
    (value,) = kept.values()
    assert torch.equal(value, X.exp().sin())


def test_light_work_on_what_is_handed_on_anyway_is_done_anew():
    def function(x, v):
        y = x.exp()
        return [y * v + (2 * y + 1) * v.sin()]

    stages, counted = two(function)
    _, kept = stages.run(0, {}, [X])
    assert len(kept) == 1
    assert torch.equal(stages.run(1, kept, [V])[0][0], function(X, V)[0])
    assert "exp" not in counted.operations[1]


def test_light_work_that_would_need_more_to_be_handed_on_is_not():
    stages, counted = two(lambda x, v: [(x.exp() + x.sin()) * v])
    _, kept = stages.run(0, {}, [X])
    assert len(kept) == 1  # the sum, not its two terms
    assert "add" in counted.operations[0] and "add" not in counted.operations[1]


def test_rearrangements_are_handed_on_as_what_they_are_of():
    def function(x, v):
        y = x.exp()
        return [y.t() @ v + (y.t().unsqueeze(0) @ v).squeeze(0)]

    stages, _ = two(function)
    _, kept = stages.run(0, {}, [X])
    assert [t.shape for t in kept.values()] == [X.shape]
    assert torch.allclose(stages.run(1, kept, [V])[0][0], function(X, V)[0])


def test_one_of_several_results_of_an_operation_is_handed_on():
    def function(x, v):
        variance, mean = torch.var_mean(x, 1, keepdim=True)
        return [(v - mean) / variance]

    stages, counted = two(function)
    _, kept = stages.run(0, {}, [X])
    assert torch.equal(stages.run(1, kept, [V])[0][0], function(X, V)[0])
    assert "var_mean" not in counted.operations[1]


def test_a_compiler_may_lay_values_out_in_another_way():
    """Inductor does: a view of what it hands on must be one of what was traced."""

    def columnwise(code):
        def run(*values):
            return [t.t().contiguous().t() if t.ndim == 2 else t for t in code(*values)]

        return run

    def function(x, v):
        return [x.exp().view(-1) * v.view(-1)]

    traced = make_fx(function)(X, V)
    stages = Partition(traced, [0, 1], [1], columnwise)
    _, kept = stages.run(0, {}, [X])
    assert torch.equal(stages.run(1, kept, [V])[0][0], function(X, V)[0])


def test_what_depends_on_no_input_is_not_handed_on():
    def function(x, v):
        return [x.exp() * v * torch.ones(3, 4).triu()]

    stages, _ = two(function)
    _, kept = stages.run(0, {}, [X])
    assert len(kept) == 1
    assert torch.equal(stages.run(1, kept, [V])[0][0], function(X, V)[0])


def test_results_of_every_stage_and_inputs_that_are_read_much_later():
    def function(x, r, v, u):
        y = x.exp()
        z = y * r
        moved = z * v
        return [y, moved, moved * u + x, v]

    R, U = X + 1, X - 1
    stages, _ = staged(function, X, R, V, U, arrivals=[0, 1, 2, 3], ready=[0, 2, 3, 3])
    expected = function(X, R, V, U)
    (y,), values = stages.run(0, {}, [X])
    none, values = stages.run(1, values, [R])
    (moved,), values = stages.run(2, values, [V])
    (last, given), values = stages.run(3, values, [U])
    assert none == [] and values == {}
    for got, want in zip((y, moved, last, given), expected, strict=True):
        assert torch.equal(got, want)


def test_a_stage_whose_input_nothing_reads_is_known():
    def function(x, r, v):
        return [x.exp() * v]

    stages, _ = staged(function, X, X + 1, V, arrivals=[0, 1, 2], ready=[2])
    assert [stages.awaits(n) for n in range(3)] == [True, False, True]


def test_inputs_are_counted():
    stages, _ = two(lambda x, v: [x * v])
    with pytest.raises(ValueError, match="zip"):
        stages.run(0, {}, [X, V])
