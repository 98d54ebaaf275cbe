"""Algorithms on vectors of which each process holds some entries: the numbers of whole vectors, by reductions alone."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from sharded_matrix import LAYOUTS, ShardedMatrix, WholeMatrix, dense, sharded, vector

import curvext as cx

SIZE = len(dense())
B = vector(SIZE, 2)
POSITIVE = 1 + vector(SIZE).square()


def cg(A, mine):
    found = cx.cg(A, mine(B[:, 0]), damping=5.0, tol=1e-12)
    return [found.residual_norm, found.iterations, found.products], [found.x]


def cg_of_columns(A, mine):
    where = dict(x0=mine(B.flip(1)), preconditioner=mine(POSITIVE))
    found = cx.cg(A, mine(B), damping=5.0, tol=1e-12, **where)
    return [*found.residual_norm, *found.iterations, found.products], [found.x]


def cg_without_curvature(A, mine):
    found = cx.cg(A, mine(B[:, 0]), tol=1e-12, preconditioner=lambda r: 2 * r)
    return [found.curvature, found.iterations], [found.x, found.negative_curvature]


def eigsh(A, mine, **options):
    found = cx.eigsh(A, 4, tol=1e-11, **options)
    return [*found.values, float(found.converged), found.products], [found.vectors]


def density(A, mine, **options):
    found = cx.spectral_density(A, **{"probes": 3, "steps": 12, **options})
    return [*found.density, *found.standard_error, *found.moments, found.products], []


def estimate(function, method, probes=24):
    def call(A, mine):
        found = function(A, method, probes)
        if found.value.ndim:
            return [found.products], [found.value, found.standard_error]
        return [found.value, found.standard_error, found.products], []

    return call


ALGORITHMS = {
    "cg": cg,
    "cg of columns, preconditioned": cg_of_columns,
    "cg without curvature": cg_without_curvature,
    "eigsh": eigsh,
    "eigsh from a vector": lambda A, mine: eigsh(A, mine, v0=mine(B[:, 0]), which="LA"),
    "eigsh of a formed matrix": lambda A, mine: eigsh(A, mine, ncv=80),
    "density": density,
    "density without a basis": lambda A, mine: density(A, mine, reorthogonalise=False),
    "density of all eigenvalues": lambda A, mine: density(A, mine, steps=60),
    "trace": estimate(cx.trace, "hutchinson"),
    "hutch++": estimate(cx.trace, "hutch++"),
    "xtrace": estimate(cx.trace, "xtrace"),
    "the exact trace": estimate(cx.trace, "hutchinson", SIZE),
    "diagonal": estimate(cx.diagonal, "hutchinson"),
    "xdiag": estimate(cx.diagonal, "xdiag"),
    "the exact diagonal": estimate(cx.diagonal, "xdiag", SIZE),
}


def as_numbers(found):
    return torch.tensor([float(n) for n in found], dtype=torch.float64)


def of_a_rank(rank, world, name, layout, dtype=torch.float64):
    A = sharded(dense(dtype), layout, rank, world)
    numbers, vectors = ALGORITHMS[name](A, lambda v: v[A.entries].to(dtype))
    return as_numbers(numbers), vectors, A.entries


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_numbers_are_those_of_whole_vectors_and_vectors_are_local(ranks, name):
    numbers, vectors = ALGORITHMS[name](WholeMatrix(dense()), lambda v: v)
    numbers = as_numbers(numbers)
    layout = {2: "scattered", 3: "nothing on the first"}[ranks.world]
    found = ranks.run(of_a_rank, name, layout)
    assert_close(found[0][0], numbers, name, tol=1e-9)
    for other, _, _ in found[1:]:
        assert torch.equal(other, found[0][0]), "not the same bits on every rank"
    for i, whole in enumerate(vectors):
        together = torch.full_like(whole, torch.nan)
        for _, mine, entries in found:
            assert mine[i].shape == (len(entries), *whole.shape[1:])
            together[entries] = mine[i]
        if "eigsh" in name:  # up to a sign, and a rotation in the space of the repeated eigenvalue
            together, whole = ((v @ v.T) for v in (together, whole))
        assert_close(together, whole, name, tol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_entries_lie_does_not_matter(ranks, layout):
    for name in ("eigsh", "xtrace"):
        numbers, _ = ALGORITHMS[name](WholeMatrix(dense()), lambda v: v)
        found = ranks.run(of_a_rank, name, layout)
        assert_close(found[0][0], as_numbers(numbers), tol=1e-9)


def test_float32_is_as_good_as_float32(ranks):
    for name in ("eigsh", "trace", "density"):
        numbers, _ = ALGORITHMS[name](WholeMatrix(dense()), lambda v: v)
        found = ranks.run(of_a_rank, name, "runs", torch.float32)[0][0]
        assert_close(found[:4], as_numbers(numbers)[:4], name, tol=1e-4)


# ---------------------------------------------------------------------- what is sent


def reductions_of(rank, world, call, *args):
    A = sharded(dense(), "runs", rank, world)
    call(A, *args)
    return A.reductions


def one_cycle(A):
    cx.eigsh(A, 2, ncv=20, maxiter=20, verify=False, tol=0.0)


def test_each_orthogonalisation_pass_of_eigsh_is_one_reduction(ranks):
    shapes = ranks.run(reductions_of, one_cycle)[0]
    # the check of entries; the first vector, in two passes; α, and then j numbers and the length, for each step
    steps = [shape for j in range(1, 21) for shape in ((1, 1), (j + 1, 1))]
    assert shapes[:3] == [(1, 20), (1, 1), (1, 1)]
    assert shapes[3:43] == steps
    assert shapes[43:] == [
        (2, 2),
        (2, 2),
        (2, 2),
    ]  # orthonormal to rounding, rotated, and residuals


def one_density(A, probes):
    cx.spectral_density(A, probes=probes, steps=6)


@pytest.mark.parametrize("probes", [1, 2])
def test_each_orthogonalisation_pass_of_a_density_is_one_reduction(ranks, probes):
    shapes = ranks.run(reductions_of, one_density, probes)[0]
    steps = [(probes, probes)]  # the lengths of the probes
    for j in range(1, 7):
        steps += [(probes, probes), *([(j + 1, 1)] * probes)]
    assert shapes[1:] == steps


def some_steps_of_cg(A, steps):
    cx.cg(A, B[:, 0][A.entries], damping=5.0, tol=0.0, maxiter=steps)


def test_an_iteration_of_cg_is_two_reductions(ranks):
    few, more = (ranks.run(reductions_of, some_steps_of_cg, steps)[0] for steps in (3, 8))
    assert len(more) - len(few) == 2 * 5
    assert max(n * m for n, m in more[1:]) == 4  # after the check of entries


# ---------------------------------------------------------------------- bad arguments


def refused(rank, world, which):
    A = sharded(dense(), "scattered", rank, world)
    wrong = {
        "a whole vector": lambda: cx.cg(A, B[:, 0]),
        "entries that overlap": lambda: cx.trace(
            ShardedMatrix(dense(), torch.arange(100)), probes=3
        ),
        "one on two, one on none": lambda: cx.trace(
            ShardedMatrix(dense(), torch.where(A.entries == 7, 8, A.entries)),
            probes=3,
        ),
        "the last twice instead of its neighbour": lambda: cx.trace(
            ShardedMatrix(dense(torch.float32), torch.where(A.entries == 148, 149, A.entries)),
            probes=3,
        ),
        "entries out of range": lambda: cx.trace(
            ShardedMatrix(dense(), torch.arange(100) + 100), probes=3
        ),
        "an entry twice": lambda: cx.trace(
            ShardedMatrix(dense(), torch.zeros(2, dtype=torch.long)), probes=3
        ),
        "entries of no integers": lambda: cx.trace(ShardedMatrix(dense(), torch.rand(3)), probes=3),
        "nan on one": lambda: cx.cg(A, nan_on_one(A)),
        "zero": lambda: cx.eigsh(A, 2, v0=0 * B[:, 0][A.entries], ncv=20),
        "no positive diagonal": lambda: cx.cg(
            A, B[:, 0][A.entries], preconditioner=POSITIVE[A.entries] - 2.0 * (A.entries == 7)
        ),
    }
    try:
        wrong[which]()
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error)
    return None


def nan_on_one(A):
    return torch.where(A.entries == 7, torch.nan, B[:, 0][A.entries])


@pytest.mark.parametrize(
    "which, kind, message",
    [
        ("a whole vector", "ValueError", "cg: b: expected shape"),
        ("entries that overlap", "ValueError", "expected each of 150 entries on one process"),
        ("one on two, one on none", "ValueError", "some twice and some not at all"),
        ("the last twice instead of its neighbour", "ValueError", "some twice and some not at all"),
        ("entries out of range", "ValueError", "expected indices from 0 to 149"),
        ("an entry twice", "ValueError", "an index occurs twice"),
        ("entries of no integers", "TypeError", "expected the global indices"),
        ("nan on one", "ValueError", "cg: b: contains nan or inf"),
        ("zero", "ValueError", "eigsh: v0: expected finite entries, not all zero"),
        ("no positive diagonal", "ValueError", "a diagonal must be positive"),
    ],
)
def test_a_bad_argument_on_one_rank_is_refused_on_all(ranks, which, kind, message):
    for seen in ranks.run(refused, which):
        assert seen is not None and seen[0] == kind and message in seen[1]
