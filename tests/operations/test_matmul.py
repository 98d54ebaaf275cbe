"""Products of matrices and vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import EDGES, B, N, X, apart, per_graph, per_sample, tangents, together
from torch import Tensor

from curvext.samples.layout import Layout

X2 = torch.randn(2 * N, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
C2 = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def adjacency(sparse: bool) -> Tensor:
    a = torch.zeros(7, 7)
    a[EDGES[1], EDGES[0]] = 1.5
    return a.to_sparse_coo() if sparse else a


test_a_tangent_is_the_derivative = tangents(
    {
        "mm": lambda x: x.mT @ x,
        "bmm": lambda x: torch.bmm(x.view(3, 2, 2), x.view(3, 2, 2).mT),
        "addmm": lambda x: torch.addmm(x[0], x, x.mT @ x, alpha=2, beta=3),
        "addmm without bias": lambda x: torch.addmm(X[0], x, X.mT @ X),
        "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
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
        "bilinear": ((N, 3), lambda x: F.bilinear(x, x.exp(), torch.ones(2, 3, 3))),
        "neighbours by a matrix": ((7, 3), lambda x: per_graph(adjacency(False) @ x)),
        "neighbours by a sparse matrix": (
            (7, 3),
            lambda x: per_graph(torch.sparse.mm(adjacency(True), x)),
        ),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "attention over samples": ((N, 3), lambda x: (x @ x.T).softmax(1) @ x),
        "a weight": ((3, 2), lambda x: torch.ones(N, 3) @ x),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "addmm, bias": ((2,), lambda w: torch.addmm(w, X2, C2, beta=3)),
        "addmm, left": (
            (2, 3),
            lambda w: torch.addmm(C2[:2, :1].expand(2, 8), w, X2.T, alpha=2),
            Layout(1, True),
        ),
        "addmm, right": ((3, 2), lambda w: torch.addmm(C2[0], X2, w, alpha=2)),
        "mm, left": ((2, 3), lambda w: w @ X2.T, Layout(1, True)),
        "mm, left, samples innermost": ((2, 3), lambda w: w @ X2.T, Layout(1, False)),
        "mm, right": ((3, 2), lambda w: X2 @ w),
        "mm, right, samples innermost": ((3, 2), lambda w: X2 @ w, Layout(0, False)),
        "bmm, right": ((1, 3, 2), lambda w: torch.bmm(X2[None], w), Layout(1, True)),
    }
)
