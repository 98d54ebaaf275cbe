"""Long runs over several processes: states on disk, ranks that raise, and ranks that die."""

from __future__ import annotations

import datetime
import importlib
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compare import assert_close
from problems import pose
from ranks import Ranks
from runs import CLOSE, RUNS, Cut, counting, cutting, matrix, parts
from sharded_matrix import dense, sharded
from shards import samples, shard

import curvext as cx
from curvext.algorithms import checkpoint

#: a state on disk costs many messages, and two ranks are enough to see what is wrong
on_two = pytest.mark.parametrize("ranks", [2], indirect=True)


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield folder


# ---------------------------------------------------------------------- sharded vectors


def of_sharded(rank, world, name, layout, path, after=None):
    A = sharded(dense(spectrum=CLOSE), layout, rank, world)
    if after is None:
        A, asked = counting(A)
        found = parts(RUNS[name](A, path))
        return {**found, "asked": torch.tensor(sum(asked)), "entries": A.entries}
    with pytest.raises(Cut):
        RUNS[name](cutting(A, after), path)
    return None


@on_two
@pytest.mark.parametrize("name", ["cg", "eigsh", "xtrace"])
def test_sharded_runs_go_on_with_the_same_bits(ranks, name, path):
    whole = ranks.run(of_sharded, name, "scattered", path + "/whole")
    for after in (17, 9):
        ranks.run(of_sharded, name, "scattered", path + "/cut", after)
    for found, wanted in zip(
        ranks.run(of_sharded, name, "scattered", path + "/cut"), whole, strict=True
    ):
        assert found.keys() == wanted.keys()
        assert found.pop("asked") <= wanted.pop("asked") - 15, "it began anew"
        for key, t in wanted.items():
            assert torch.equal(found[key].nan_to_num(7.0), t.nan_to_num(7.0)), key


@on_two
def test_a_sharded_run_goes_on_where_entries_lie_otherwise(ranks, path):
    for name in ("eigsh", "diagonal"):
        here = f"{path}/{name}"
        ranks.run(of_sharded, name, "scattered", here, 25)
        alone = parts(RUNS[name](matrix(), None))
        found = ranks.run(of_sharded, name, "nothing on the first", here)
        assert found[0]["asked"] <= alone["products"] - 15, "it began anew"
        # and on a process alone, from what several have written last
        last, asked = counting(matrix())
        last = parts(RUNS[name](last, here))
        assert sum(asked) <= alone["products"] - 15, "it began anew"
        for key in {"eigsh": ("vectors",), "diagonal": ("value", "standard_error")}[name]:
            t = torch.zeros_like(alone[key])
            for of_rank in found:
                t[of_rank["entries"]] = of_rank[key]
            for seen in (t, last[key]):
                wanted = alone[key]
                if key == "vectors":  # of an eigenvalue that is there twice: the space is known
                    seen, wanted = seen @ seen.T, wanted @ wanted.T
                assert_close(seen, wanted, f"{name}: {key}", tol=1e-8)


@on_two
def test_a_basis_of_several_processes_is_that_of_one(ranks, path):
    for name in ("hutch++", "xtrace", "xdiag"):
        here = f"{path}/{name}"
        ranks.run(of_sharded, name, "scattered", here, 18)  # among the products of the basis
        found, wanted = RUNS[name](matrix(), here), RUNS[name](matrix(), None)
        assert found.products == wanted.products
        assert_close(found.value, wanted.value, name, tol=1e-9)
        assert_close(found.standard_error, wanted.standard_error, name, tol=1e-9)


@on_two
def test_a_rank_without_entries_takes_part(ranks, path):
    for name in ("cg", "cg of columns"):
        whole = RUNS[name](matrix(), None)
        here = f"{path}/{name}"
        ranks.run(of_sharded, name, "nothing on the first", here, 20)
        nothing, everything = ranks.run(of_sharded, name, "nothing on the first", here)
        assert nothing["x"].shape[0] == 0
        assert torch.equal(nothing["products"], everything["products"])
        assert_close(everything["x"].flip(0), whole.x, name, tol=1e-9)


# ---------------------------------------------------------------------- replicas


class Fragile(Exception):
    """What a model may raise."""


def of_replicas(rank, world, path, after):
    posed = pose("mlp", "ce_weight", samples=samples("uneven", world))
    left = [after if rank == world - 1 else 1 << 30]

    def forward(model, batch):
        left[0] -= 1
        if left[0] < 0:
            raise Fragile("enough")
        return model(batch[0])

    data = shard(posed, "uneven", rank, world)
    risk = cx.EmpiricalRisk(
        posed.model, posed.loss, data, cache=False, forward=forward, process_group=dist.group.WORLD
    )
    try:
        found = cx.trace(risk.hessian(), probes=12, checkpoint=path)
    except Exception as error:
        return type(error).__name__
    return parts(found)


@on_two
def test_replicas_go_on_with_the_same_bits_after_one_of_them_raised(ranks, path):
    many = 1 << 30
    whole = ranks.run(of_replicas, path + "/whole", many)[0]
    seen = ranks.run(of_replicas, path + "/cut", 9)
    assert seen == ["RuntimeError"] * (ranks.world - 1) + ["Fragile"]
    assert len(list(Path(path, "cut").iterdir())) == 2, (
        "one state, and what says that it is complete"
    )
    for found in ranks.run(of_replicas, path + "/cut", many):
        for key, t in whole.items():
            assert torch.equal(found[key], t), key


def full_disk(rank, world, path, kind):
    replace, left = checkpoint._replace, [3]

    def failing(file, text):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("no space left on device")
        replace(file, text)

    if kind == "sharded":
        A = sharded(dense(spectrum=CLOSE), "runs", rank, world)
    else:
        posed = pose("mlp", "ce_weight", samples=samples("uneven", world))
        data = shard(posed, "uneven", rank, world)
        A = cx.GGNOperator(posed.model, posed.loss, data, process_group=dist.group.WORLD)
    checkpoint._replace = failing
    try:
        cx.trace(A, probes=9, checkpoint=path)
        return None
    except Exception as error:
        checkpoint._replace = replace
        return type(error).__name__, str(error), float(cx.trace(A, probes=9, checkpoint=path).value)
    finally:
        checkpoint._replace = replace


@on_two
@pytest.mark.parametrize("kind", ["sharded", "replicas"])
def test_a_state_that_cannot_be_written_is_an_error_of_all(ranks, kind, path):
    first, *others = ranks.run(full_disk, path, kind)
    assert first[0] == "OSError"
    for other in others:
        assert other[:2] == ("RuntimeError", "rank 0 raised OSError: no space left on device")
        assert other[2] == first[2]


# ---------------------------------------------------------------------- errors on sharded vectors


class Grouped:
    """A sharded operator whose processes exchange words, as the library's own do."""

    def __init__(self, A):
        self.shape, self.dtype, self.device, self.entries = A.shape, A.dtype, A.device, A.entries
        self.matvec, self.matmat, self.inner = A.matvec, A.matmat, A.inner
        self.group = cx.Identity(1).group.__class__(dist.group.WORLD)


def raising_in_the_preconditioner(A, rank, world):
    left = [3]

    def apply(r):
        left[0] -= 1
        if left[0] < 0 and rank == world - 1:
            raise Fragile("enough")
        return r / 2

    return cx.cg(A, A.b, damping=1.1, tol=1e-12, preconditioner=apply)


RAISING = {
    "a preconditioner": ("Fragile", raising_in_the_preconditioner),
    "the shape of b": ("ValueError", lambda A, r, W: cx.cg(A, A.b[1:] if r == W - 1 else A.b)),
}


def of_grouped(rank, world, case):
    A = Grouped(sharded(dense(spectrum=CLOSE), "scattered", rank, world))
    A.b = torch.ones(len(A.entries), dtype=A.dtype)
    try:
        RAISING[case][1](A, rank, world)
        seen = None
    except Exception as error:
        seen = type(error).__name__, str(error)
    return seen, float(cx.trace(A, probes=9).value)


@on_two
@pytest.mark.parametrize("case", RAISING)
def test_an_error_between_reductions_is_one_of_all(ranks, case):
    found = ranks.run(of_grouped, case)
    name = RAISING[case][0]
    for rank, (seen, after) in enumerate(found):
        assert after == found[0][1]
        if rank == ranks.world - 1:
            assert seen[0] == name
        else:
            assert seen[0] == "RuntimeError"
            assert seen[1].startswith(f"rank {ranks.world - 1} raised {name}")


# ---------------------------------------------------------------------- death


#: seconds
TIMEOUT = 6


def of_a_dying_rank(rank, world, path, how):
    A = sharded(dense(spectrum=CLOSE), "runs", rank, world)
    importlib.import_module("torch.distributed.checkpoint")  # which takes longer than the timeout
    dist.barrier()
    A.process_group = dist.new_group(timeout=datetime.timedelta(seconds=TIMEOUT))
    if rank == 1:
        times, left = A._times, [30]

        def dying(V):
            left[0] -= 1
            if left[0] < 0:
                os._exit(1) if how == "dies" else time.sleep(2 * TIMEOUT)
            return times(V)

        A._times = dying
    begin = time.monotonic()
    try:
        RUNS["eigsh"](A, path)
    except Exception as error:
        return type(error).__name__, time.monotonic() - begin
    return None


@pytest.mark.parametrize("how", ["dies", "falls silent"])
def test_a_rank_that_is_gone_is_an_error_of_the_others_within_the_timeout(how, path):
    started = Ranks(2)
    try:
        first, second = started.outcomes(of_a_dying_rank, path, how)
    finally:
        started.close()
    assert first.value is not None, "rank 0 saw nothing"
    assert first.value[1] < 2 * TIMEOUT, "it waited longer than the group's timeout"
    if how == "dies":
        assert second.message == "this rank has died"
    # the last complete state is there: a process alone goes on from it
    found = RUNS["eigsh"](matrix(), path)
    assert found.products > 30
    assert_close(found.values, RUNS["eigsh"](matrix(), None).values, tol=1e-9)
