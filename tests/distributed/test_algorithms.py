"""Solvers, spectra and estimators over several processes are those of one on the union, with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from shards import samples, shard, union

import curvext as cx


def ends(A):
    """By Lanczos: with so few vectors held the matrix is not formed."""
    found = cx.eigsh(A, 2, "LA", ncv=8, tol=1e-13)
    return torch.cat([found.values, found.vectors.abs().flatten()])


def verdict(risk, **options):
    found = cx.critical_point(risk, **options)
    numbers = [found.gradient_norm, found.smallest, found.largest]
    return torch.tensor([*numbers, *map(float, found.verdict.encode())], dtype=torch.float64)


ALGORITHMS = {
    "cg": lambda r, v: cx.cg(r.ggn(), v[:, 0], damping=0.5, tol=1e-13).x,
    "cg with columns": lambda r, v: cx.cg(r.ggn(), v, damping=0.5, tol=1e-13).x,
    "eigsh": lambda r, v: ends(r.hessian()),
    "eigsh of a small matrix": lambda r, v: cx.eigsh(r.hessian(), 3).values,
    "spectral density": lambda r, v: cx.spectral_density(r.hessian(), probes=2, steps=6).density,
    "hutchinson": lambda r, v: cx.trace(r.hessian(), probes=20).value,
    "hutch++": lambda r, v: cx.trace(r.hessian(), "hutch++", probes=20).value,
    "xtrace": lambda r, v: cx.trace(r.ggn() + r.hessian(), "xtrace", probes=20).value,
    "diagonal": lambda r, v: cx.diagonal(r.hessian(), probes=20).value,
    "xdiag": lambda r, v: cx.diagonal(r.hessian(), "xdiag", probes=20).value,
    "critical point": lambda r, v: verdict(r),
    "critical point by Lanczos": lambda r, v: verdict(r, dense_limit=0, probes=1, steps=4),
    "condition number": lambda r, v: torch.tensor(
        cx.condition_number(r.ggn(), damping=0.1).value, dtype=torch.float64
    ),
    "a natural step": lambda r, v: cx.natural_gradient_step(r, damping=0.5, tol=1e-13).step,
    "a step by the Gram matrix": lambda r, v: (
        cx.natural_gradient_step(r, damping=0.5, kind="empirical").step
    ),
    "compare": lambda r, v: torch.tensor(
        [x for x in [cx.compare(r, probes=4).products] if x is not None], dtype=torch.float64
    ),
}


def of_a_rank(rank, world, name):
    posed = pose("mlp", "ce_weight_ignore_smooth", samples=samples("uneven", world))
    data = shard(posed, "uneven", rank, world)
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=dist.group.WORLD)
    return ALGORITHMS[name](risk, posed.vectors())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_gives_what_one_process_would(ranks, name):
    posed = pose("mlp", "ce_weight_ignore_smooth", samples=samples("uneven", ranks.world))
    risk = cx.EmpiricalRisk(posed.model, posed.loss, union(posed))
    found = ranks.run(of_a_rank, name)
    assert_close(found[0], ALGORITHMS[name](risk, posed.vectors()), name, tol=1e-9)
    for other in found[1:]:
        assert torch.equal(other, found[0])
