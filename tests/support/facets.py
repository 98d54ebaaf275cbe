"""What every rule of an operation is held against: a tangent, where samples lie, and per-sample gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvext.graph.autograd_graph import Graph
from curvext.operations.node import DetachedSaved
from curvext.operations.operation import OutputGradient
from curvext.operations.table import operation
from curvext.per_sample.proof import prove
from curvext.products.tangents import Tangents
from curvext.samples.layout import Layout

N = 4
#: an order of N samples
INDEX = torch.tensor([2, 0, 3, 1])
MASK = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
#: the nodes of four graphs, and edges within them
GRAPH_OF = torch.tensor([0, 0, 1, 2, 2, 2, 3])
EDGES = torch.tensor([[0, 1, 1, 3, 4, 5, 6], [1, 0, 1, 4, 5, 3, 6]])

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
B = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def per_graph(h: Tensor) -> Tensor:
    """Sums over the nodes of each graph."""
    return torch.zeros(N, h.shape[1]).index_add(0, GRAPH_OF, h)


# ---------------------------------------------------------------------- tangents


def by_double_backward(output, parameters, v):
    """J v as the derivative of Jᵀu by u, which is another definition of it."""
    u = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, parameters, u, create_graph=True, allow_unused=True)
    live = [(p, t) for p, t in zip(pulled, v, strict=True) if p is not None and p.requires_grad]
    (product,) = torch.autograd.grad(
        [p for p, _ in live], u, [t for _, t in live], allow_unused=True
    )
    return torch.zeros_like(output) if product is None else product


def assert_tangent(output, parameters, expected=None, seed=0):
    """The graph, after its tangent was found right."""
    generator = torch.Generator().manual_seed(seed)
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]
    graph = Graph(output, parameters)
    assert not Tangents.missing(graph)
    got = Tangents(graph)(v)
    want = by_double_backward(output, parameters, v) if expected is None else expected(v)
    if got is None:
        got = torch.zeros_like(want)
    assert got.shape == want.shape
    assert_close(got, want, rtol=1e-10, atol=1e-10)
    return graph


def tangents(functions):
    """A test of the tangents of functions x [3, 4] → y, by name."""

    @pytest.mark.parametrize("name", functions)
    def test(name):
        function, x = functions[name], X.clone().requires_grad_()
        # torch.func's forward mode is a third way to the same derivative, and has its own rules
        assert_tangent(function(x), [x], lambda v: torch.func.jvp(function, (X,), (v[0],))[1])

    test.functions = functions
    return test


def derivatives(y, inputs, g, u):
    """The gradients along g, and those of their inner product with u, which are second derivatives."""
    first = torch.autograd.grad(y, inputs, g, create_graph=True)
    inner = sum((a * b).sum() for a, b in zip(first, u, strict=True))
    second = torch.autograd.grad(inner, [g, *inputs], materialize_grads=True)
    return [y, *first, *second]


def other_ways(node, functions, rtol=1e-11):
    """A test of every other way to an operation: functions x [3, 4] → y whose graph has its node, by name.

    The way leads past the node to the same value and gradient, and PyTorch differentiates it twice, and rightly.
    """
    ways = dict.fromkeys(operation(node).alternatives.values())

    @pytest.mark.parametrize("way", ways)
    @pytest.mark.parametrize("name", functions)
    def test(name, way):
        function, x = functions[name], X.clone().requires_grad_()
        plain = function(x)
        assert node in Graph(plain, [x]).names
        with way():
            other = function(x)
        assert node not in Graph(other, [x]).names
        assert_close(other, plain, rtol=1e-12, atol=1e-12)
        g = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).to(plain)
        gradients = [torch.autograd.grad(y, x, g)[0] for y in (other, plain)]
        assert_close(*gradients, rtol=rtol, atol=1e-12)

        def by_the_way(x):
            with way():
                return function(x)

        assert torch.autograd.gradgradcheck(by_the_way, x)

    test.node = {node: functions}
    return test


# ---------------------------------------------------------------------- where samples lie


def proof_and_truth(shape, call):
    """Owners of x by the rules, and by the Jacobian which samples each element reaches, [numel, N]."""
    torch.manual_seed(0)
    leaf = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def output(x: Tensor) -> Tensor:
        y = call(x)
        return y.real if y.is_complex() else y

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        y = output(leaf * 1)
        assert len(y) == N
        graph = Graph(y, [leaf])
        proof = prove(graph, N)
        jacobian = torch.autograd.functional.jacobian(lambda x: output(x * 1), leaf.detach())
    finally:
        torch.set_default_dtype(before)
    reaches = jacobian.reshape(N, -1, leaf.numel()).ne(0).any(1).T.numpy()
    (position,) = graph.parameter_at
    return proof.owners.get(position), reaches


def apart(cases):
    """A test that rules see samples apart in x where the Jacobian says so: name → (shape of x, x → y [N, ...])."""

    @pytest.mark.parametrize("name", cases)
    def test(name):
        shape, call = cases[name]
        owners, reaches = proof_and_truth(shape, call)
        assert owners is not None, "no rule says that samples are apart here"
        owner = np.broadcast_to(owners, shape).reshape(-1)
        assert (reaches.sum(1) <= 1).all()  # the case itself
        element, sample = reaches.nonzero()
        assert (owner[element] == sample).all()

    test.cases = cases
    return test


def together(cases):
    """A test that nothing is said where samples meet in x, or lie so that no rule sees them apart."""

    @pytest.mark.parametrize("name", cases)
    def test(name):
        owners, _ = proof_and_truth(*cases[name])
        assert owners is None

    return test


# ---------------------------------------------------------------------- per-sample gradients


def per_sample(cases):
    """A test of the per-sample gradients of w, one of the inputs of an operation.

    Name → (shape of w, w → y, where samples lie in y if it is not [N, ...]).
    """

    @pytest.mark.parametrize("name", cases)
    def test(name):
        shape, call, *layout = cases[name]
        layout = layout[0] if layout else Layout(0, True)
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        y = call(w)
        g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        node = y.grad_fn
        (edge,) = (
            i
            for i, (child, _) in enumerate(node.next_functions)
            if getattr(child, "variable", None) is w
        )
        rule = operation(node.name()).per_sample[edge]
        use = rule(OutputGradient(DetachedSaved(node), g, layout, N, w.shape))
        assert use is not None, "the rule does not apply"
        sample_of = layout.samples_first(torch.arange(y.numel()).view(y.shape), N).reshape(N, -1)
        for n in range(N):
            alone = torch.zeros(y.numel(), dtype=torch.float64)
            alone[sample_of[n]] = g.flatten()[sample_of[n]]
            (expected,) = torch.autograd.grad(y, w, alone.view_as(y), retain_graph=True)
            got = use.sample(n).reshape(expected.shape)
            assert_close(got, expected, rtol=1e-11, atol=1e-11)

    test.uses = cases
    return test
