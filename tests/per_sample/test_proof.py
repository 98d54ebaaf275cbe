"""Where samples lie: every rule of data flow against the Jacobian, and proofs that hold for no other values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from curvext.graph.autograd_graph import Graph
from curvext.per_sample.proof import prove
from curvext.samples import owners as own
from curvext.samples.layout import Layout, RaggedLayout, layouts_of

N = 4
INDEX = torch.tensor([2, 0, 3, 1])
MASK = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)
GRAPH_OF = torch.tensor([0, 0, 1, 2, 2, 2, 3])  # the nodes of four graphs
EDGES = torch.tensor([[0, 1, 1, 3, 4, 5, 6], [1, 0, 1, 4, 5, 3, 6]])

B = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def per_graph(h: Tensor) -> Tensor:
    return torch.zeros(N, h.shape[1]).index_add(0, GRAPH_OF, h)


def largest_of_graph(h: Tensor) -> Tensor:
    index = GRAPH_OF[:, None].expand(-1, h.shape[1])
    return torch.zeros(N, h.shape[1]).scatter_reduce(0, index, h, "amax", include_self=False)


def packed(x: Tensor) -> Tensor:
    rows = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]), batch_first=True).data
    return torch.zeros(N, 2).index_add(0, torch.tensor([0, 1, 2, 3, 0, 1, 2, 0]), rows)


def experts(x: Tensor) -> Tensor:
    first, second = INDEX[:2], INDEX[2:]
    out = torch.zeros(N, 3).index_add(0, first, x[first] @ B)
    return out.index_add(0, second, x[second].exp())


def in_place(write):
    def call(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape)
        write(out, x)
        return out

    return call


def adjacency(sparse: bool) -> Tensor:
    a = torch.zeros(7, 7)
    a[EDGES[1], EDGES[0]] = 1.5
    return a.to_sparse_coo() if sparse else a


#: name → (shape of x, x → y [N, ...]); samples are apart in x, and the rule must see it
APART = {
    # element by element, with broadcasting
    "tanh": ((N, 3), torch.tanh),
    "mul by itself": ((N, 3), lambda x: x * x.sin()),
    "broadcast over columns": ((N, 1), lambda x: x * torch.ones(N, 3)),
    "where": ((N, 3), lambda x: torch.where(MASK, x, -x)),
    "masked_fill": ((N, 3), lambda x: x.masked_fill(MASK, 2.0)),
    "clamp": ((N, 3), lambda x: x.clamp(-0.5, 0.5)),
    "lerp": ((N, 3), lambda x: torch.lerp(x, x.exp(), 0.3)),
    "complex": ((N, 3), lambda x: torch.complex(x, x * 2).abs()),
    "to float32 and back": ((N, 3), lambda x: x.float().double()),
    "batch norm": ((N, 3), lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3))),
    # along dimensions
    "softmax": ((N, 3), lambda x: x.softmax(1)),
    "log_softmax of images": ((N, 3, 2), lambda x: x.log_softmax(1)),
    "cumsum": ((N, 3), lambda x: x.cumsum(1)),
    "logcumsumexp": ((N, 3), lambda x: x.logcumsumexp(-1)),
    "cumprod of the last": ((3, N), lambda x: x.cumprod(0).T),
    "glu": ((N, 6), lambda x: F.glu(x)),
    "layer norm": ((N, 3, 2), lambda x: F.layer_norm(x, (3, 2))),
    "rms norm": ((N, 3), lambda x: F.rms_norm(x, (3,))),
    "group norm": ((N, 4, 2), lambda x: F.group_norm(x, 2)),
    "instance norm": ((N, 3, 5), lambda x: F.instance_norm(x)),
    "fft": ((N, 5), lambda x: torch.fft.rfft(x).abs()),
    "inverse fft": ((N, 3), lambda x: torch.fft.irfft(x.to(torch.complex128))),
    "max pool": ((N, 2, 4, 4), lambda x: F.max_pool2d(x, 2)),
    "average pool": ((N, 2, 4), lambda x: F.avg_pool1d(x, 2)),
    "adaptive pool": ((N, 2, 4, 4), lambda x: F.adaptive_avg_pool2d(x, 3)),
    "upsample": ((N, 2, 2, 2), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "reflect": ((N, 2, 4), lambda x: F.pad(x, (1, 2), mode="reflect")),
    "pixel shuffle": ((N, 4, 2, 2), lambda x: F.pixel_shuffle(x, 2)),
    "unfolded images": ((N, 2, 3, 3), lambda x: F.unfold(x, 2)),
    "folded images": ((N, 8, 4), lambda x: F.fold(x, (3, 3), 2)),
    "grid sample": ((N, 2, 3, 3), lambda x: F.grid_sample(x, torch.zeros(N, 2, 2, 2), align_corners=True)),
    "sum": ((N, 3, 2), lambda x: x.sum((1, 2))),
    "mean keeping": ((3, N), lambda x: x.mean(0, keepdim=True).T),
    "variance": ((N, 3), lambda x: x.var(1)),
    "variance and mean": ((N, 3), lambda x: torch.stack(torch.var_mean(x, 1), 1)),
    "norm": ((N, 3), lambda x: x.norm(dim=1)),
    "vector norm": ((N, 3), lambda x: torch.linalg.vector_norm(x, dim=1)),
    "logsumexp": ((N, 3), lambda x: x.logsumexp(1)),
    "maximum": ((N, 3), lambda x: x.max(1)[0]),
    "median": ((N, 3), lambda x: x.median(1)[0]),
    "product": ((N, 3), lambda x: x.prod(1)),
    "sort within": ((N, 3), lambda x: x.sort(1)[0]),
    "topk within": ((N, 3), lambda x: x.topk(2, 1)[0]),
    "cross": ((N, 3), lambda x: torch.linalg.cross(x, torch.ones(N, 3))),
    "triangle of matrices": ((N, 3, 3), lambda x: x.tril()),
    "inverse": ((N, 3, 3), lambda x: torch.linalg.inv(x + 5 * torch.eye(3))),
    "determinant": ((N, 3, 3), torch.linalg.det),
    "solve": ((N, 3, 3), lambda x: torch.linalg.solve(x + 5 * torch.eye(3), torch.ones(N, 3, 1))),
    "cholesky": ((N, 3, 3), lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3))),
    "cross entropy": ((N, 3), lambda x: F.cross_entropy(x, INDEX % 3, reduction="none")),
    "cross entropy of images": ((N, 3, 2), lambda x: F.cross_entropy(x, MASK[:, :2].long(), reduction="none").mean(1)),
    "squared error": ((N, 3), lambda x: F.mse_loss(x, torch.ones(N, 3), reduction="none").mean(1)),
    "binary cross entropy": ((N, 3), lambda x: F.binary_cross_entropy_with_logits(x, MASK.double(), reduction="none")),
    # products
    "linear": ((N, 3), lambda x: x @ B),
    "linear with bias": ((N, 3), lambda x: F.linear(x, B, torch.ones(3))),
    "linear on sequences": ((N, 5, 3), lambda x: F.linear(x, B)),
    "from the left": ((3, N), lambda x: (B @ x).T),
    "matrix and vector": ((N, 3), lambda x: x @ torch.ones(3)),
    "batched": ((N, 3, 2), lambda x: torch.bmm(x, torch.ones(N, 2, 3))),
    "batched, right": ((N, 3, 2), lambda x: torch.ones(N, 2, 3) @ x),
    "outer of samples": ((N, 3), lambda x: torch.einsum("ni,nj->nij", x, x)),
    "einsum": ((N, 3, 2), lambda x: torch.einsum("nij,jk->nik", x, torch.ones(2, 3))),
    "baddbmm": ((N, 3, 3), lambda x: torch.baddbmm(x, x, x)),
    "convolution": ((N, 2, 5), lambda x: F.conv1d(x, torch.ones(3, 2, 2))),
    "transposed convolution": ((N, 2, 5), lambda x: F.conv_transpose1d(x, torch.ones(2, 3, 2))),
    "bilinear": ((N, 3), lambda x: F.bilinear(x, x.exp(), torch.ones(2, 3, 3))),
    "attention": ((N, 2, 3, 4), lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos())),
    "distances within": ((N, 3, 2), lambda x: torch.cdist(x, x + 1)),
    "neighbours by a matrix": ((7, 3), lambda x: per_graph(adjacency(False) @ x)),
    "neighbours by a sparse matrix": ((7, 3), lambda x: per_graph(torch.sparse.mm(adjacency(True), x))),
    # rearrangements
    "transposed": ((3, N), lambda x: x.T),
    "sequence first": ((5, N, 3), lambda x: x.transpose(0, 1)),
    "permuted": ((2, 3, N), lambda x: x.permute(2, 0, 1)),
    "merged, batch first": ((N * 5, 3), lambda x: x.view(N, 5, 3)),
    "merged, sequence first": ((5 * N, 3), lambda x: x.view(5, N, 3).mean(0)),
    "merged twice": ((5 * N * 2, 3), lambda x: x.view(5, N, 2, 3).transpose(0, 1).flatten(1)),
    "folded into the columns": ((3, N * 2), lambda x: x.view(3, N, 2).transpose(0, 1)),
    "flat": ((N * 6,), lambda x: x.view(N, 2, 3)),
    "split of views": ((N, 6), lambda x: torch.cat(x.split([1, 2, 3], 1)[::-1], 1)),
    "chunks along samples": ((2 * N, 3), lambda x: x.chunk(2)[0] * x.chunk(2)[1]),
    "one of two": ((N, 2, 3), lambda x: x[:, 1]),
    "every second": ((N, 6), lambda x: x[:, 1::2]),
    "every second row": ((2 * N, 3), lambda x: x[::2]),
    "class token": ((N, 5, 3), lambda x: x[:, 0] + x[:, -1]),
    "unbound": ((N, 3), lambda x: torch.stack([row.tanh() for row in x.unbind(0)])),
    "loop over samples": ((N, 3), lambda x: torch.stack([x[i].cumsum(0) for i in range(N)])),
    "joined loop": ((N, 3), lambda x: torch.cat([x[i : i + 1] * i for i in range(N)])),
    "joined with constants": ((N - 1, 3), lambda x: torch.cat([torch.ones(1, 3), x])),
    "stacked along the last": ((N, 3), lambda x: torch.stack([x, x * 2], -1)),
    "expanded": ((N, 1, 3), lambda x: x.expand(N, 5, 3)),
    "repeated": ((N, 3), lambda x: x.repeat(1, 2)),
    "interleaved": ((N, 3), lambda x: x.repeat_interleave(2, 0).view(N, 2, 3)),
    "flipped": ((N, 3), lambda x: x.flip(0, 1)),
    "rolled": ((N, 3), lambda x: x.roll((1, 2), (0, 1))),
    "rolled flat": ((N, 3), lambda x: x.roll(3)),
    "padded": ((N - 1, 3), lambda x: F.pad(x, (0, 1, 1, 0))),
    "cropped": ((N + 2, 3), lambda x: F.pad(x, (0, 0, -1, -1))),
    "windows": ((N, 6), lambda x: x.unfold(1, 3, 2)),
    "windows of rows": ((2 * N, 3), lambda x: x.unfold(0, 2, 2)),
    "diagonal": ((N, N), lambda x: x.diagonal()),
    "diagonals": ((N, 3, 3), lambda x: x.diagonal(1, 1, 2)),
    "squeezed": ((N, 1, 3), lambda x: x.squeeze(1).unsqueeze(2)),
    "slice replaced": ((N, 3), lambda x: torch.slice_scatter(torch.zeros(N, 5), x, 1, 1, 4)),
    "row replaced": ((3,), lambda x: torch.select_scatter(torch.zeros(N, 3), x, 0, 2)),
    "real and imaginary": ((N, 3, 2), lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j)),
    # indices
    "permuted by index": ((N, 3), lambda x: x[INDEX]),
    "there and back": ((N, 3), lambda x: x[INDEX].tanh()[INDEX.argsort()]),
    "index_select": ((N + 2, 3), lambda x: x.index_select(0, INDEX + 1)),
    "masked tokens": ((N, 3, 2), lambda x: torch.zeros(N, 3, 2).index_put((MASK,), x[MASK].tanh())),
    "masked positions": ((N, 3), lambda x: torch.zeros(N, 3).masked_scatter(MASK, x.masked_select(MASK) * 2)),
    "two indices": ((N, 3), lambda x: x[torch.arange(N), INDEX % 3]),
    "indices apart": ((N, 3, N), lambda x: x[torch.arange(N), :, torch.arange(N)]),
    "index after a whole dimension": ((3, N + 1, 2), lambda x: x[:, INDEX].transpose(0, 1)),
    "gather within": ((N, 3), lambda x: x.gather(1, INDEX[:, None] % 3)),
    "gather across": ((N + 1, 3), lambda x: x.gather(0, INDEX[:, None].expand(-1, 3))),
    "gather fewer": ((N, 3, 5), lambda x: x.gather(2, torch.zeros(N, 2, 2, dtype=torch.long))),
    "scatter within": ((N, 2), lambda x: torch.zeros(N, 5).scatter(1, MASK[:, :2].long() + torch.tensor([0, 2]), x)),
    "scatter across": ((N, 3), lambda x: torch.zeros(N, 3).scatter_add(0, INDEX[:, None].expand(-1, 3), x)),
    "scatter of fewer": ((N, 2), lambda x: torch.zeros(N, 3).scatter_add(0, INDEX[:, None].expand(-1, 2), x)),
    "largest of each graph": ((7, 3), largest_of_graph),
    "sum of each graph": ((7, 3), per_graph),
    "messages": ((7, 3), lambda x: per_graph(torch.zeros(7, 3).index_add(0, EDGES[1], x[EDGES[0]].tanh()))),
    "copied by index": ((N, 3), lambda x: torch.zeros(N, 3).index_copy(0, INDEX, x)),
    "sorted samples": ((N,), lambda x: x.sort()[0]),
    "largest samples": ((N + 3,), lambda x: x.topk(N)[0]),
    "taken": ((N * 2,), lambda x: torch.take(x, INDEX * 2)),
    "looked up in an activation": ((N, 3), lambda x: F.embedding(INDEX, x.tanh())),
    "packed sequences": ((N, 3, 2), packed),
    "experts": ((N, 3), experts),
    "written by index": ((N, 3), in_place(lambda out, x: out.__setitem__(INDEX, x))),
}  # fmt: skip

#: samples meet in x, or lie so that no rule sees them apart: nothing may be said
TOGETHER = {
    "centred": ((N, 3), lambda x: x - x.mean(0)),
    "softmax over samples": ((N, 3), lambda x: x.softmax(0)),
    "attention over samples": ((N, 3), lambda x: (x @ x.T).softmax(1) @ x),
    "behind a gate of zero": ((N, 3), lambda x: x + 0.0 * x.sum(0)),
    "cumsum over samples": ((N, 3), lambda x: x.cumsum(0)),
    "normalised by the batch": ((N, 3), lambda x: F.batch_norm(x, None, None, training=True)),
    "a row for all": ((N, 3), lambda x: x + x[0]),
    "read twice": ((N, 3), lambda x: x[torch.tensor([0, 0, 2, 3])]),
    "gathered from one": ((N, 3), lambda x: x.gather(0, torch.zeros(N, 3, dtype=torch.long))),
    "a weight": ((3, 2), lambda x: torch.ones(N, 3) @ x),
    "a kernel": ((3, 2, 2), lambda x: F.conv1d(torch.ones(N, 2, 5), x)),
    "a scale": ((3,), lambda x: F.layer_norm(torch.ones(N, 3), (3,), x)),
    "a table": ((3, 2), lambda x: F.embedding(INDEX % 3, x)),
    "over edges between graphs": (
        (7, 3),
        lambda x: per_graph(x[torch.tensor([0, 1, 1, 3, 4, 5, 6])]),
    ),
    "distances between samples": ((N, 3), lambda x: torch.cdist(x, x)),
}


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


@pytest.mark.parametrize("name", APART)
def test_a_rule_sees_samples_apart_and_never_against_the_jacobian(name):
    shape, call = APART[name]
    owners, reaches = proof_and_truth(shape, call)
    assert owners is not None, "no rule says that samples are apart here"
    owner = np.broadcast_to(owners, shape).reshape(-1)
    assert (reaches.sum(1) <= 1).all()  # the case itself
    element, sample = reaches.nonzero()
    assert (owner[element] == sample).all()


@pytest.mark.parametrize("name", TOGETHER)
def test_nothing_is_said_where_samples_may_meet(name):
    owners, _ = proof_and_truth(*TOGETHER[name])
    assert owners is None


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
