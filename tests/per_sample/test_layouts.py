"""Per-sample quantities where indices, masks, routing, gates and sizes decide which samples meet, batch after batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import curvext as cx
from curvext.per_sample.node_gradients import gradients_at
from curvext.per_sample.plan_cache import plan_cache_of
from curvext.per_sample.probe import Probe, Sketch
from curvext.samples.layout import Layout

CE = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Net(nn.Module):
    def __init__(self, call: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def forward(model, batch):
    return model(*batch[0])


def rows(model: nn.Module, batch, loss=CE) -> Tensor:
    """g_n [N, P] by one backward pass of the whole batch for each sample."""
    output, target = forward(model, batch), batch[1]
    leaf = output.detach().requires_grad_()
    (residual,) = torch.autograd.grad(loss(leaf, target), leaf)
    residual *= len(output)
    found = []
    for n in range(len(output)):
        only = torch.zeros_like(residual)
        only[n] = residual[n]
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(
            output, parameters, only, retain_graph=True, allow_unused=True
        )
        pairs = zip(parameters, gradients, strict=True)
        found.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
        )
    return torch.stack(found)


def check(model: nn.Module, batch) -> str:
    """All per-sample quantities of one batch; what explain() says."""
    g = rows(model, batch)
    risk = cx.EmpiricalRisk(model, CE, batch, forward=forward)
    E = risk.empirical_fisher()
    v = torch.randn(g.shape[1], 2)
    assert_close(E.gradient_norms(), g.norm(dim=1))
    assert_close(E.diagonal(), g.square().mean(0))
    assert_close(E @ v, g.T @ (g @ v) / len(g))
    assert_close(E.gram(), g @ g.T)
    logits = torch.func.functional_call
    named = dict(model.named_parameters())
    jacobian = torch.autograd.functional.jacobian(
        lambda *p: logits(model, dict(zip(named, p, strict=True)), tuple(batch[0])),
        tuple(named.values()),
    )
    J = torch.cat(
        [
            j.reshape(*g.shape[:1], -1, p.numel())
            for j, p in zip(jacobian, named.values(), strict=True)
        ],
        2,
    )
    p = forward(model, batch).softmax(1).detach()
    root = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    diagonal = sum(((j.T @ h) * j.T).sum(1) for j, h in zip(J, root, strict=True)) / len(g)
    assert_close(risk.ggn().diagonal(), diagonal)
    return risk.explain()


def labels(n: int) -> Tensor:
    return torch.arange(n) % 2


def permuted(order: list[int]):
    x = torch.randn(len(order), 3)
    return (x, torch.tensor(order)), labels(len(order))


def there_and_back(s: Net, x: Tensor, order: Tensor) -> Tensor:
    return s.b(torch.tanh(s.a(x[order]))[order.argsort()])


def two_layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(3, 4), "b": nn.Linear(4, 2)}


@pytest.mark.parametrize("call", [
    there_and_back,
    lambda s, x, o: s.b(torch.tanh(s.a(x.index_select(0, o))).index_select(0, o.argsort())),
    lambda s, x, o: s.b(torch.tanh(s.a(x[o])).gather(0, o.argsort()[:, None].expand(-1, 4))),
    lambda s, x, o: s.b(torch.zeros(len(x), 4).index_copy(0, o, torch.tanh(s.a(x[o])))),
    lambda s, x, o: s.b(torch.zeros(len(x), 4).scatter(0, o.expand(4, -1).T, torch.tanh(s.a(x[o])))),
    lambda s, x, o: s.b(torch.zeros(len(x), 4).index_put((o,), torch.tanh(s.a(x[o])))),
    lambda s, x, o: s.b(F.embedding(o.argsort(), torch.tanh(s.a(x[o])))),
    lambda s, x, o: s.b(F.one_hot(o).double().T @ torch.tanh(s.a(x[o]))),
], ids=["index", "index_select", "gather", "index_copy", "scatter", "index_put", "embedding", "one_hot"])  # fmt: skip
def test_an_order_by_index_changes_nothing_from_batch_to_batch(call):
    model = Net(call, **two_layers())
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0], [1, 0], [0, 1, 2, 3]):
        check(model, permuted(order))


def test_the_norms_of_a_permuted_batch_are_those_of_the_batch():
    model = Net(there_and_back, **two_layers())
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    norms = [
        cx.per_sample_gradient_norms(model, CE, ((x, torch.tensor(o)), y), forward=forward)
        for o in ([0, 1, 2, 3], [2, 0, 3, 1])
    ]
    assert_close(norms[1], norms[0])


def test_batches_of_one_risk_may_have_other_orders_and_sizes():
    model = Net(there_and_back, **two_layers())
    batches = [permuted(o) for o in ([0, 1, 2, 3], [2, 0, 3, 1], [1, 0], [0, 2, 1, 3])]
    g = torch.cat([rows(model, batch) for batch in batches])
    E = cx.EmpiricalFisherOperator(model, CE, batches, forward=forward)
    assert_close(E.gradient_norms(), g.norm(dim=1))
    assert_close(E.diagonal(), g.square().mean(0))


# ---------------------------------------------------------------------- graphs, experts, masks, sequences


def message_passing(s: Net, x: Tensor, source: Tensor, to: Tensor, graph: Tensor) -> Tensor:
    h = torch.tanh(s.a(x))
    h = h.index_add(0, to, s.message(h[source]))
    return s.b(torch.zeros(int(graph.max()) + 1, 4).index_add(0, graph, h.relu()))


def graphs(sizes: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    graph = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    start = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    source, to = [], []
    for first, size in zip(start.tolist(), sizes, strict=True):
        for _ in range(2 * size):
            a, b = torch.randint(size, (2,), generator=generator).tolist()
            source.append(first + a)
            to.append(first + b)
    x = torch.randn(len(graph), 3, generator=generator)
    return (x, torch.tensor(source), torch.tensor(to), graph), labels(len(sizes))


def test_graph_networks_go_by_the_edges_of_each_batch():
    model = Net(message_passing, message=nn.Linear(4, 4), **two_layers())
    for seed, sizes in enumerate([[2, 3, 1], [3, 1, 2], [1, 1, 5], [4, 2], [2, 3, 1]]):
        told = check(model, graphs(sizes, seed))
        assert "a.weight" in told and "general" not in told and "by indices" in told, told


@pytest.mark.parametrize("sparse", [False, True])
def test_graphs_by_an_adjacency_matrix(sparse):
    def convolved(s, x, source, to, graph):
        a = torch.zeros(len(x), len(x))
        a[to, source] = 0.5
        a = a.to_sparse_coo() if sparse else a
        multiply = torch.sparse.mm if sparse else torch.mm
        h = torch.tanh(multiply(a, s.a(x)))
        return s.b(torch.zeros(int(graph.max()) + 1, 4).index_add(0, graph, h))

    model = Net(convolved, **two_layers())
    for seed, sizes in enumerate([[2, 3, 1], [3, 1, 2], [4, 2]]):
        assert "general" not in check(model, graphs(sizes, seed))


def test_samples_that_an_edge_joins_are_not_taken_apart():
    model = Net(message_passing, message=nn.Linear(4, 4), **two_layers())
    (x, source, to, graph), y = graphs([2, 3, 1], 0)
    check(model, ((x, source, to, graph), y))
    source = source.clone()
    source[0] = 5  # from the last graph to the first
    check(model, ((x, source, to, graph), y))


def routed(s: Net, x: Tensor) -> Tensor:
    weight = s.gate(x).softmax(1)
    chosen = weight.argmax(1)
    out = torch.zeros(len(x), 4)
    for number, expert in enumerate(s.experts):
        taken = chosen == number
        out[taken] = expert(x[taken]).tanh() * weight[taken, number : number + 1]
    return s.b(out)


def test_experts_see_other_samples_in_each_batch():
    experts = nn.ModuleList(nn.Linear(3, 4) for _ in range(3))
    model = Net(routed, gate=nn.Linear(3, 3), experts=experts, b=nn.Linear(4, 2))
    for n in (5, 5, 7, 4):
        check(model, ((torch.randn(n, 3),), labels(n)))


def test_routing_follows_the_parameters():
    experts = nn.ModuleList(nn.Linear(3, 4) for _ in range(2))
    model = Net(routed, gate=nn.Linear(3, 2), experts=experts, b=nn.Linear(4, 2))
    batch = ((torch.randn(6, 3),), labels(6))
    for step in range(4):
        check(model, batch)
        with torch.no_grad():
            model.gate.weight.copy_(
                torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
            )


def masked(s: Net, x: Tensor, mask: Tensor) -> Tensor:
    tokens = torch.tanh(s.a(x[mask]))  # packed, without padding
    padded = torch.zeros(*mask.shape, 4)
    padded[mask] = s.c(tokens)
    return s.b(padded.sum(1))


def test_masked_tokens_are_each_samples_own():
    model = Net(masked, c=nn.Linear(4, 4), **two_layers())
    for seed in range(4):
        mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
        told = check(model, ((torch.randn(4, 5, 3), mask), labels(4)))
        assert "general" not in told, told


def recurrent(s: Net, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(s.rnn(packed)[0], batch_first=True)
    return s.b(out.sum(1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_sequences_that_are_sorted_by_length_inside(kind):
    model = Net(recurrent, rnn=kind(3, 4, batch_first=True), b=nn.Linear(4, 2))
    for lengths in ([3, 1, 4], [1, 4, 2], [4, 4, 4], [2, 3, 1]):
        told = check(model, ((torch.randn(3, 4, 3), torch.tensor(lengths)), labels(3)))
        assert "general" not in told, told


def test_sorted_values_of_the_samples():
    def call(s, x):
        score = s.a(x).sum(1)
        ranked, order = score.sort()
        return s.b(torch.tanh(ranked[:, None] * s.a(x)[order])[order.argsort()])

    model = Net(call, **two_layers())
    for _ in range(3):
        check(model, ((torch.randn(5, 3),), labels(5)))


# ---------------------------------------------------------------------- zeros prove nothing


@pytest.mark.parametrize("coupled", [
    lambda s, h: h.roll(1, 0),
    lambda s, h: h.mean(0, keepdim=True).expand(len(h), -1),
    lambda s, h: (h @ h.T).softmax(1) @ h,
    lambda s, h: h.flip(0),
    lambda s, h: h.cumsum(0),
], ids=["roll", "mean", "attention", "flip", "cumsum"])  # fmt: skip
@pytest.mark.parametrize("where", ["gate", "head"])
def test_what_a_zero_hides_at_first_is_seen_after_a_step(coupled, where):
    def call(s, x):
        h = torch.tanh(s.a(x))
        return s.b(h + s.gate * s.c(coupled(s, h)))

    model = Net(call, c=nn.Linear(4, 4), gate=nn.Parameter(torch.ones(())), **two_layers())
    zero = model.gate if where == "gate" else model.b.weight
    with torch.no_grad():
        zero.zero_()
    batch = ((torch.randn(4, 3),), labels(4))
    check(model, batch)
    with torch.no_grad():
        zero += 0.7
    check(model, batch)
    with torch.no_grad():
        zero.zero_()
    check(model, batch)


class Reversed(torch.autograd.Function):
    """An operation without a rule, which the backward pass must be asked about."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.order = order
        return x[order]

    @staticmethod
    def backward(ctx, g):
        return g[ctx.order.argsort()], None


def test_an_unknown_operation_is_asked_on_each_batch_in_which_order_samples_lie():
    def call(s, x, order):
        return s.b(torch.tanh(Reversed.apply(s.a(x), order)))

    model = Net(call, **two_layers())
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [0, 1, 2, 3], [1, 0, 3, 2]):
        told = check(model, ((torch.randn(4, 3), torch.tensor(order)), labels(4)))
        assert "a.weight  fused, by backward passes" in told, told


def test_an_unknown_operation_that_keeps_samples_apart_is_fast_and_says_so():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    model = Net(lambda s, x: s.b(torch.tanh(Doubled.apply(s.a(x)))), **two_layers())
    for n in (4, 4, 3):
        told = check(model, ((torch.randn(n, 3),), labels(n)))
        assert "a.weight  fused, by backward passes" in told, told
        assert "b.weight  fused, by structure" in told, told


@pytest.mark.parametrize("call, later", [
    (lambda s, x, o: s.b(torch.tanh(s.a(x))), 1),
    (there_and_back, 1),
    (lambda s, x, o: s.b(torch.tanh(Reversed.apply(s.a(x), o))), 2),
], ids=["structure", "indices", "backward passes"])  # fmt: skip
def test_a_proof_costs_no_pass_or_one_for_each_later_batch(call, later, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "curvext.per_sample.backward_pass.gradients_at",
        lambda *args, **options: (passes.append(1), gradients_at(*args, **options))[1],
    )
    model = Net(call, **two_layers())
    for number, order in enumerate(([0, 1, 2, 3], [2, 0, 3, 1], [1, 0, 3, 2])):
        passes.clear()
        cx.per_sample_gradient_norms(model, CE, permuted(order), forward=forward)
        assert len(passes) == (later if number else later + (later > 1))


def test_two_samples_of_many_that_change_places_are_seen():
    """More samples than there are powers of two: each still has a scale of its own."""

    def call(s, x, order):
        return s.b(torch.tanh(Reversed.apply(s.a(x), order)))

    for first, second in ((0, 1), (3, 70), (17, 130)):
        torch.manual_seed(0)
        model = Net(call, **two_layers()).float()
        order = torch.arange(140)
        order[first], order[second] = second, first
        batch = ((torch.randn(140, 3, dtype=torch.float32), order), labels(140))
        norms = cx.per_sample_gradient_norms(model, CE, batch, forward=forward)
        assert_close(norms, rows(model, batch).norm(dim=1).to(norms.dtype))


# ---------------------------------------------------------------------- the general path


def test_a_gate_of_zero_does_not_pass_for_samples_apart_when_they_are_run_alone():
    """Alone each sample gives the output of the batch, but not the derivative by the gate."""

    def call(s, x):
        h = torch.tanh(s.a(x))
        return s.b(h + s.gate * s.mix(h, h.mean(0, keepdim=True).expand(len(h), -1)))

    gate = nn.Parameter(torch.zeros(()))
    model = Net(call, mix=nn.Bilinear(4, 4, 4), gate=gate, **two_layers())
    check(model, ((torch.randn(5, 3),), labels(5)))


def test_a_model_that_asserts_the_size_of_its_batch_goes_by_the_whole_of_it():
    def call(s, x):
        assert x.shape[0] == 6
        return s.b(torch.bmm(s.a(x)[:, None], s.w.expand(6, -1, -1) * x[:, :1, None])[:, 0])

    model = Net(call, w=nn.Parameter(torch.randn(4, 4)), **two_layers())
    check(model, ((torch.randn(6, 3),), labels(6)))


def test_a_network_that_loops_over_its_samples():
    def call(s, x):
        return torch.stack([s.b(torch.tanh(s.a(row))) for row in x])

    model = Net(call, **two_layers())
    for n in (3, 5):
        check(model, ((torch.randn(n, 3),), labels(n)))


def test_a_gradient_that_is_scaled_but_for_its_last_bit_proves_nothing():
    plain = torch.tensor([1.5, -1.9999999, 0.0, 3.0], dtype=torch.float32)
    probe = Probe(plain)
    sketches = [Sketch(c) for c in probe.cotangents]
    assert probe.layouts(plain.shape, sketches) == (Layout(0, True),)
    scaled = probe.cotangents[1].clone()
    scaled[1] = torch.nextafter(scaled[1], torch.tensor(torch.inf, dtype=torch.float32))
    assert probe.layouts(plain.shape, [Sketch(plain), Sketch(scaled)]) == ()


def test_structures_that_come_once_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("curvext.per_sample.plan_cache._STRUCTURES", 3)

    def deep(s, x, steps):
        h = s.a(x)
        for _ in range(int(steps)):
            h = torch.tanh(h)
        return s.b(h)

    model = Net(deep, **two_layers())
    x, y = torch.randn(4, 3), labels(4)
    expected = {}
    for steps in (1, 2, 3, 4, 5, 1, 5):
        check(model, ((x, torch.tensor(steps)), y))
        expected[steps] = len(plan_cache_of(model)._known)
    assert max(expected.values()) == 3
