"""Reading and writing by indices."""

from __future__ import annotations

import torch
from facets import EDGES, GRAPH_OF, INDEX, MASK, B, N, apart, per_graph, tangents, together
from torch import Tensor


def largest_of_graph(h: Tensor) -> Tensor:
    index = GRAPH_OF[:, None].expand(-1, h.shape[1])
    return torch.zeros(N, h.shape[1]).scatter_reduce(0, index, h, "amax", include_self=False)


def experts(x: Tensor) -> Tensor:
    first, second = INDEX[:2], INDEX[2:]
    out = torch.zeros(N, 3).index_add(0, first, x[first] @ B)
    return out.index_add(0, second, x[second].exp())


test_a_tangent_is_the_derivative = tangents(
    {
        "gather": lambda x: x.gather(1, torch.tensor([[0, 3], [1, 1], [2, 0]])),
        "index": lambda x: x[torch.tensor([0, 0, 2])],
        "a part in place": lambda x: x.clone().index_fill_(0, torch.tensor([1]), 0.0) * x,
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "sort within": ((N, 3), lambda x: x.sort(1)[0]),
        "topk within": ((N, 3), lambda x: x.topk(2, 1)[0]),
        "permuted by index": ((N, 3), lambda x: x[INDEX]),
        "there and back": ((N, 3), lambda x: x[INDEX].tanh()[INDEX.argsort()]),
        "index_select": ((N + 2, 3), lambda x: x.index_select(0, INDEX + 1)),
        "masked tokens": (
            (N, 3, 2),
            lambda x: torch.zeros(N, 3, 2).index_put((MASK,), x[MASK].tanh()),
        ),
        "masked positions": (
            (N, 3),
            lambda x: torch.zeros(N, 3).masked_scatter(MASK, x.masked_select(MASK) * 2),
        ),
        "two indices": ((N, 3), lambda x: x[torch.arange(N), INDEX % 3]),
        "indices apart": ((N, 3, N), lambda x: x[torch.arange(N), :, torch.arange(N)]),
        "index after a whole dimension": ((3, N + 1, 2), lambda x: x[:, INDEX].transpose(0, 1)),
        "gather within": ((N, 3), lambda x: x.gather(1, INDEX[:, None] % 3)),
        "gather across": ((N + 1, 3), lambda x: x.gather(0, INDEX[:, None].expand(-1, 3))),
        "gather fewer": ((N, 3, 5), lambda x: x.gather(2, torch.zeros(N, 2, 2, dtype=torch.long))),
        "scatter within": (
            (N, 2),
            lambda x: torch.zeros(N, 5).scatter(1, MASK[:, :2].long() + torch.tensor([0, 2]), x),
        ),
        "scatter across": (
            (N, 3),
            lambda x: torch.zeros(N, 3).scatter_add(0, INDEX[:, None].expand(-1, 3), x),
        ),
        "scatter of fewer": (
            (N, 2),
            lambda x: torch.zeros(N, 3).scatter_add(0, INDEX[:, None].expand(-1, 2), x),
        ),
        "largest of each graph": ((7, 3), largest_of_graph),
        "sum of each graph": ((7, 3), per_graph),
        "messages": (
            (7, 3),
            lambda x: per_graph(torch.zeros(7, 3).index_add(0, EDGES[1], x[EDGES[0]].tanh())),
        ),
        "copied by index": ((N, 3), lambda x: torch.zeros(N, 3).index_copy(0, INDEX, x)),
        "sorted samples": ((N,), lambda x: x.sort()[0]),
        "largest samples": ((N + 3,), lambda x: x.topk(N)[0]),
        "taken": ((N * 2,), lambda x: torch.take(x, INDEX * 2)),
        "experts": ((N, 3), experts),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "read twice": ((N, 3), lambda x: x[torch.tensor([0, 0, 2, 3])]),
        "gathered from one": ((N, 3), lambda x: x.gather(0, torch.zeros(N, 3, dtype=torch.long))),
        "over edges between graphs": (
            (7, 3),
            lambda x: per_graph(x[torch.tensor([0, 1, 1, 3, 4, 5, 6])]),
        ),
    }
)
