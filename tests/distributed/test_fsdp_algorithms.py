"""Algorithms on parameters that ``fully_shard`` has sharded: local vectors, and the numbers of one process."""

from __future__ import annotations

import torch
from compare import assert_close
from fully_sharded import group, mesh_of, sharded
from problems import pose
from shards import samples, shard, union

import curvext as cx

LANCZOS = dict(ncv=8, tol=1e-12)  # with so few vectors held the matrix is not formed

NUMBERS = {
    "eigsh": lambda r: cx.eigsh(r.hessian(), 2, "LA", **LANCZOS).values,
    "density": lambda r: cx.spectral_density(r.hessian(), probes=2, steps=6).density,
    "trace": lambda r: cx.trace(2 * r.hessian() + r.ggn(), probes=6).value,
    "xtrace": lambda r: cx.trace(r.hessian(), "xtrace", probes=12).value,
    "cg": lambda r: torch.as_tensor(cx.cg(r.ggn(), _right(r), damping=0.5, tol=1e-12).iterations),
    "critical point": lambda r: torch.tensor(
        cx.critical_point(r, dense_limit=0, probes=1, steps=4).smallest
    ),
}


def _right(risk):
    return torch.linspace(-1, 1, risk.space.size, dtype=torch.float64)


def of_the_union(world):
    posed = pose("mlp", "ce_weight_ignore_smooth", samples=samples("uneven", world))
    return cx.EmpiricalRisk(posed.model, posed.loss, union(posed))


def of_a_rank(rank, world):
    posed = pose("mlp", "ce_weight_ignore_smooth", samples=samples("uneven", world))
    sharded(posed.model, mesh_of(world))
    data = shard(posed, "uneven", rank, world)
    return posed, cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group())


def numbers(rank, world):
    _, risk = of_a_rank(rank, world)
    return {name: call(risk) for name, call in NUMBERS.items()}


def test_numbers_are_those_of_one_process(ranks):
    risk, several = of_the_union(ranks.world), ranks.run(numbers)
    for name, call in NUMBERS.items():
        assert_close(several[0][name].double(), call(risk).double(), name, tol=1e-8)
        for other in several[1:]:
            assert torch.equal(other[name], several[0][name]), name


def vectors(rank, world):
    _, risk = of_a_rank(rank, world)
    H, G, b = risk.hessian(), risk.ggn(), _right(risk)
    found = cx.eigsh(H, 2, "LA", **LANCZOS).vectors
    assert found.shape == (len(H.entries), 2)
    diagonal = cx.diagonal(H, probes=6).value
    by_entries = cx.cg(G, G.local(b), damping=0.5, tol=1e-12).x
    by_whole = cx.cg(G, b, damping=0.5, tol=1e-12).x
    assert torch.equal(G.full(by_entries), by_whole)
    named = G.local_vectors.named(b)
    by_name = cx.cg(G, named, damping=0.5, tol=1e-12).x
    assert {n: t.placements for n, t in by_name.items()} == {
        n: t.placements for n, t in named.items()
    }
    assert torch.equal(G.local(by_name), by_entries)
    return H.full(found), H.full(diagonal), by_whole


def test_vectors_are_local_and_those_of_one_process(ranks):
    risk = of_the_union(ranks.world)
    pairs, diagonal, solution = ranks.run(vectors)[0]
    wanted = cx.eigsh(risk.hessian(), 2, "LA", **LANCZOS).vectors
    assert_close((pairs.T @ wanted).abs(), torch.eye(2).double(), tol=1e-6)
    assert_close(diagonal, cx.diagonal(risk.hessian(), probes=6).value, tol=1e-9)
    assert_close(solution, cx.cg(risk.ggn(), _right(risk), damping=0.5, tol=1e-12).x, tol=1e-9)


def long_run(rank, world, path, change):
    posed, risk = of_a_rank(rank, world)
    if change:
        with torch.no_grad():
            next(iter(posed.model.parameters())).add_(1e-6)
    try:
        return cx.eigsh(risk.hessian(), 2, "LA", checkpoint=path, **LANCZOS).values
    except ValueError as error:
        return str(error)


def test_a_state_names_another_model(ranks, tmp_path):
    first = ranks.run(long_run, str(tmp_path), False)[0]
    assert torch.equal(ranks.run(long_run, str(tmp_path), False)[0], first)
    for message in ranks.run(long_run, str(tmp_path), True):
        assert "the contents of the model's parameters is not the same" in message
