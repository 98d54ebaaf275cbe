"""A run that was cut off goes on with the same bits, or says why it cannot."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import runs
import torch
from runs import RUNS, SIZE, Cut, counting, cutting, matrix, parts
from sharded_matrix import ShardedMatrix, WholeMatrix, dense, vector

import curvext as cx
from curvext.algorithms import checkpoint
from curvext.algorithms.conjugate_gradients import Solution
from curvext.algorithms.eigsh import _Search
from curvext.algorithms.vectors import Vectors

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_bits(found, wanted):
    found, wanted = parts(found), parts(wanted)
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        assert torch.equal(found[name].nan_to_num(7.0), t.nan_to_num(7.0)), name


def kept(path):
    """The products that the state at a path is behind."""
    part = json.loads((path / "complete.json").read_text())["parts"][-1]
    return int(checkpoint._loaded(path / part, "number products"))


def assert_goes_on(name, path, whole, least):
    """The run ends with the same bits, and with no product but those left and the one that knows the matrix."""
    before = kept(path)
    A, asked = counting(matrix())
    assert_same_bits(RUNS[name](A, path), whole)
    assert least <= before <= whole.products
    assert sum(asked) == whole.products - before + 1


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(name, tmp_path):
    whole = RUNS[name](matrix(), tmp_path / "whole")
    total = whole.products
    for after in (0, 3 * total // 4, total // 4):  # in the first product, and on the way
        with pytest.raises(Cut):
            RUNS[name](cutting(matrix(), after), tmp_path / "cut")
    assert_goes_on(name, tmp_path / "cut", whole, total // 2)


@pytest.mark.parametrize("name", ["cg", "cg of columns that leave", "eigsh"])
def test_what_comes_after_an_early_cut_is_the_same_too(name, tmp_path):
    # of eigsh before the pairs are set aside, for which it draws another vector
    whole = RUNS[name](matrix(), tmp_path / "whole")
    cut_run(tmp_path / "cut", name, 30)
    assert_goes_on(name, tmp_path / "cut", whole, 8)


def test_the_runs_decide_something():
    eigsh = RUNS["eigsh"](matrix(), None)
    assert eigsh.products < SIZE, "the matrix is formed"
    assert eigsh.values.tolist() == pytest.approx([1.4, 1.4, 2])
    leaving = RUNS["cg of columns that leave"](matrix(), None)
    assert leaving.converged.tolist() == [True, True, True, False, False]
    assert len(set(leaving.iterations.tolist())) == 5
    assert leaving.negative_curvature.norm(dim=0).round().tolist() == [0, 0, 0, 1, 1]


def everything(t):
    """A deep copy of what an object holds, without what it works with."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(t).items()
        if isinstance(value, (torch.Tensor, int, float, type(None)))
    }


def assert_same_state(found, saved, but=()):
    assert found.keys() == saved.keys()
    for name in found.keys() - set(but):
        a, b = found[name], saved[name]
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert a == b, name


@pytest.mark.parametrize(
    "name, after",
    [
        *(("cg", 20), ("cg", 40), ("cg of columns", 20), ("cg of columns", 40)),
        *(("cg of columns that leave", 40), ("cg of columns that leave", 50)),
    ],
)
def test_cg_has_again_what_it_saved(name, after, tmp_path, monkeypatch):
    states, restored = [], []
    save, restore = Solution._save, Solution._restored

    def saving(self, now, state):
        save(self, now, state)
        mine = everything(self)
        mine["x"][now.at] = now.x
        states.append((everything(now), mine))

    def restoring(self, state):
        now = restore(self, state)
        if now is not None:
            restored.append((everything(now), everything(self)))
        return now

    monkeypatch.setattr(Solution, "_save", saving)
    monkeypatch.setattr(Solution, "_restored", restoring)
    cut_run(tmp_path, name, after)
    count = len(states)
    RUNS[name](matrix(), tmp_path)
    assert count > 0
    ((now, mine),), (was, before) = restored, states[count - 1]
    assert_same_state(now, was)
    assert_same_state(mine, before, but=["r"])  # which is that of the iteration


@pytest.mark.parametrize("after", [20, 50, 70])
def test_eigsh_has_again_what_it_saved(after, tmp_path, monkeypatch):
    states, restored = [], []
    save, restore = _Search.save, _Search.restore

    def saving(self, state):
        save(self, state)
        states.append(everything(self))

    def restoring(self, state):
        found = restore(self, state)
        restored.append(everything(self))
        return found

    monkeypatch.setattr(_Search, "save", saving)
    monkeypatch.setattr(_Search, "restore", restoring)
    cut_run(tmp_path, "eigsh", after)
    wanted = states[-1]
    RUNS["eigsh"](matrix(), tmp_path)
    rows = wanted["rows"] + 1
    for state in (wanted, restored[-1]):
        state["basis"] = state["basis"][:rows]
    assert_same_state(restored[-1], wanted, but=["scratch"])


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_changes_nothing_but_the_order_of_sums(name, tmp_path):
    with_one, without = RUNS[name](matrix(), str(tmp_path / "there")), RUNS[name](matrix(), None)
    for key, t in parts(without).items():
        if key != "vectors":
            torch.testing.assert_close(
                parts(with_one)[key], t, rtol=1e-6, atol=1e-9, msg=key, equal_nan=True
            )


@pytest.mark.parametrize("name", ["hutch++", "xtrace", "xdiag"])
def test_a_basis_is_kept_with_its_products(name, tmp_path, monkeypatch):
    whole = RUNS[name](matrix(), tmp_path / "whole")
    cut_run(tmp_path / "cut", name, 18)

    def other(vectors, columns):  # a basis of the same space
        Q, R = torch.linalg.qr(columns)
        return -Q, -R

    monkeypatch.setattr(Vectors, "qr", other)
    assert_goes_on(name, tmp_path / "cut", whole, 17)


@pytest.mark.parametrize("name", ["hutch++", "xtrace", "xdiag"])
def test_a_basis_without_directions_is_one_too(name, tmp_path):
    A = WholeMatrix(torch.zeros(SIZE, SIZE, dtype=torch.float64))
    for _ in range(2):
        assert float(RUNS[name](A, tmp_path).value.abs().max()) == 0


def test_a_finished_run_is_there_again(tmp_path):
    first = runs.eigsh(matrix(), tmp_path)
    assert_goes_on("eigsh", tmp_path, first, first.products // 2)


@pytest.mark.parametrize("name", ["cg", "eigsh", "xtrace"])
def test_a_process_that_was_killed_loses_nothing_that_was_written(name, tmp_path):
    script = Path(runs.__file__)
    ended = subprocess.run([sys.executable, str(script), name, str(tmp_path), "24"], check=False)
    assert ended.returncode == -9
    assert_goes_on(name, tmp_path, RUNS[name](matrix(), tmp_path / "other"), 12)


def cut_run(path, name="eigsh", after=30):
    with pytest.raises(Cut):
        RUNS[name](cutting(matrix(), after), path)
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_a_state_that_was_being_written_does_not_count(tmp_path):
    cut_run(tmp_path)
    half = tmp_path / "state-000007"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "complete.new").write_text("{")
    assert_goes_on("eigsh", tmp_path, runs.eigsh(matrix(), tmp_path / "other"), 12)
    assert not half.exists()


def test_a_run_that_is_cut_off_while_it_writes_has_the_state_before(tmp_path, monkeypatch):
    replace, left = checkpoint._replace, [2]

    def failing(file, text):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("no space left on device")
        replace(file, text)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_replace", failing)
        with pytest.raises(OSError, match="no space left"):
            runs.eigsh(matrix(), tmp_path)
    assert_same_bits(runs.eigsh(matrix(), tmp_path), runs.eigsh(matrix(), tmp_path / "other"))


def test_a_damaged_state_is_refused(tmp_path):
    for file in cut_run(tmp_path):
        data = file.read_bytes()
        for damaged in (data[: len(data) // 2], b""):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="eigsh: checkpoint '.*cannot be read .*Delete it"):
                runs.eigsh(matrix(), tmp_path)
        file.write_bytes(data)
    assert_same_bits(runs.eigsh(matrix(), tmp_path), runs.eigsh(matrix(), tmp_path / "other"))


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize(
    "error",
    [OSError(5, "the disk is gone"), MemoryError("it is full"), torch.OutOfMemoryError("full")],
    ids=lambda error: type(error).__name__,
)
def test_a_disk_or_memory_that_fails_is_no_damage(error, tmp_path, monkeypatch):
    cut_run(tmp_path)
    for owner, name in ((Path, "read_text"), (torch, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, raising(error))
            with pytest.raises(type(error)) as caught:
                runs.eigsh(matrix(), tmp_path)
        assert caught.value is error
    assert_same_bits(runs.eigsh(matrix(), tmp_path), runs.eigsh(matrix(), tmp_path / "other"))


def test_an_interrupt_while_reading_is_one(tmp_path, monkeypatch):
    cut_run(tmp_path)
    monkeypatch.setattr(torch, "load", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runs.eigsh(matrix(), tmp_path)


def test_warnings_that_mean_something_are_heard(tmp_path, monkeypatch):
    save = checkpoint._distributed_checkpoint().save

    def warning(*args, **kwargs):
        warnings.warn("the disk is nearly full", stacklevel=1)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint._distributed_checkpoint(), "save", warning)
    with pytest.warns(UserWarning, match="nearly full"):
        runs.eigsh(matrix(), tmp_path)


def test_vectors_that_lack_entries_are_refused(tmp_path):
    A = ShardedMatrix(dense(), torch.arange(SIZE))
    for _ in range(2):
        cx.diagonal(A, probes=3, checkpoint=tmp_path)
    load = checkpoint._loaded

    def lacking(folder, key):
        t = load(folder, key)
        return t[1:] if key.startswith("entries") else t[:, 1:] if key.startswith("rows") else t

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_loaded", lacking)
        with pytest.raises(ValueError, match="149 of 150 entries of .* are there"):
            cx.diagonal(A, probes=3, checkpoint=tmp_path)


@pytest.mark.parametrize("name", ["trace", "eigsh", "xtrace"])
def test_two_runs_at_one_path_are_refused(name, tmp_path):
    A, left, others = matrix(), [25], []
    matvec, matmat = A.matvec, A.matmat

    def interrupted(times, v):
        left[0] -= 1
        if left[0] == 0:
            others.append(RUNS[name](matrix(), tmp_path))
        return times(v)

    A.matvec = lambda v: interrupted(matvec, v)
    A.matmat = lambda V: interrupted(matmat, V)
    with pytest.raises(ValueError, match="another run writes there too"):
        RUNS[name](A, tmp_path)
    assert_goes_on(name, tmp_path, others[0], 15)  # what the other has written


CHANGES = {
    "seed": ("eigsh", dict(seed=1)),
    "k": ("eigsh", None),
    "which": ("eigsh", dict(which="SA")),
    "tol": ("eigsh", dict(tol=1e-9)),
    "ncv": ("eigsh", dict(ncv=14)),
    "maxiter": ("eigsh", dict(maxiter=999)),
    "v0": ("eigsh", dict(v0=vector(SIZE))),
    "verify": ("eigsh", dict(verify=False)),
    "damping": ("cg", dict(damping=4.4)),
    "x0": ("cg", dict(x0=vector(SIZE))),
    "preconditioner": ("cg", dict(preconditioner=vector(SIZE).square() + 2)),
    "method": ("trace", None),
    "probes": ("diagonal", dict(probes=31)),
    "steps": ("density", dict(steps=11)),
    "reorthogonalise": ("density", dict(reorthogonalise=False)),
}


@pytest.mark.parametrize("argument", CHANGES)
def test_another_argument_is_named(argument, tmp_path):
    name, change = CHANGES[argument]
    cut_run(tmp_path, name, 20)
    call = {
        "k": lambda: cx.eigsh(matrix(), 4, which="LA", ncv=12, tol=1e-12, checkpoint=tmp_path),
        "method": lambda: cx.trace(matrix(), "xtrace", 30, checkpoint=tmp_path),
    }.get(argument, lambda: RUNS[name](matrix(), tmp_path, **(change or {})))
    with pytest.raises(ValueError, match=f"the argument {argument} is not the same"):
        call()


def test_another_right_hand_side_is_named(tmp_path):
    cut_run(tmp_path, "cg", 20)
    b = vector(SIZE, 2)[:, 1].clone()
    b[5] += 1e-13
    with pytest.raises(ValueError, match="the argument b is not the same"):
        cx.cg(matrix(), b, damping=1.1, tol=1e-13, checkpoint=tmp_path)


def test_another_algorithm_and_another_matrix_are_named(tmp_path):
    cut_run(tmp_path)
    with pytest.raises(ValueError, match="the algorithm is not the same: eigsh then, trace now"):
        cx.trace(matrix(), probes=30, checkpoint=tmp_path)
    other = matrix().dense.clone()
    other[3, 3] += 1e-6
    with pytest.raises(ValueError, match="A is not the same matrix"):
        runs.eigsh(WholeMatrix(other), tmp_path)
    with pytest.raises(ValueError, match="the shape of A is not the same"):
        runs.eigsh(WholeMatrix(other[:99, :99]), tmp_path)


class Diagonal:
    """A diagonal matrix."""

    def __init__(self, d):
        self.d, self.shape, self.dtype, self.device = d, (len(d), len(d)), d.dtype, d.device

    def matvec(self, v):
        return self.d * v


def test_a_small_change_of_a_large_matrix_is_one(tmp_path):
    d = torch.linspace(1, 2, 4000, dtype=torch.float64)
    cx.trace(Diagonal(d), probes=2, checkpoint=tmp_path)
    rounded = d * (1 + 1e-15 * vector(4000).sign())
    cx.trace(Diagonal(rounded), probes=2, checkpoint=tmp_path)
    cx.trace(Diagonal(d * (1 + 2.0**-52)), probes=2, checkpoint=tmp_path)
    other = d + 3e-10 * vector(4000).sign()
    with pytest.raises(ValueError, match="A is not the same matrix"):
        cx.trace(Diagonal(other), probes=2, checkpoint=tmp_path)


def test_another_function_as_preconditioner_is_named(tmp_path):
    inverse = 1 / (2 + vector(SIZE).square())

    def applied(t):
        return dict(damping=1.1, tol=1e-13, preconditioner=lambda r: r * t, checkpoint=tmp_path)

    b = vector(SIZE)
    whole = cx.cg(matrix(), b, **applied(inverse))
    assert_same_bits(cx.cg(matrix(), b, **applied(inverse.clone())), whole)
    assert_same_bits(
        cx.cg(matrix(), b, **{**applied(0), "preconditioner": Diagonal(inverse)}), whole
    )
    with pytest.raises(ValueError, match="the argument preconditioner is not the same. Give"):
        cx.cg(matrix(), b, **applied(inverse + 1e-3 * vector(SIZE).abs()))
    with pytest.raises(ValueError, match="the argument preconditioner is not the same"):
        cx.cg(matrix(), b, **{**applied(0), "preconditioner": None})


def test_nan_leaves_the_state_before(tmp_path):
    for name, run in RUNS.items():
        path = tmp_path / name.replace(" ", "-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError, RuntimeError):
                run(cutting(matrix(), 25, "nan"), path)
        assert_same_bits(run(matrix(), path), run(matrix(), tmp_path / "other" / path.name))


def test_a_small_matrix_that_is_formed_has_a_checkpoint_too(tmp_path):
    A = WholeMatrix(torch.diag(torch.arange(1.0, 9.0)))
    for path in (tmp_path, tmp_path):
        assert float(cx.eigsh(A, 1, checkpoint=path).values) == pytest.approx(8.0)
    with pytest.raises(ValueError, match="the argument seed is not the same"):
        cx.eigsh(A, 1, seed=1, checkpoint=tmp_path)


def test_what_is_no_path_is_refused(tmp_path):
    with pytest.raises(TypeError, match="trace: checkpoint: expected None or a path, got int"):
        cx.trace(matrix(), checkpoint=3)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="expected a folder"):
        cx.trace(matrix(), checkpoint=file)
    assert file.read_text() == "mine"


def test_vectors_of_the_caller_are_left_alone(tmp_path):
    b, x0, v0 = vector(SIZE, 2), vector(SIZE, 2).flip(0), vector(SIZE)
    preconditioner = 1 + vector(SIZE).square()
    given = [b, x0, v0, preconditioner]
    before = [t.clone() for t in given]
    found = []
    for path in (tmp_path / "cg", tmp_path / "cg", None):  # begun, gone on with, and without
        where = dict(x0=x0, preconditioner=preconditioner, damping=1.1, tol=1e-13)
        found.append(cx.cg(matrix(), b, checkpoint=path, **where))
        one = dict(where, x0=x0[:, 0])
        single = path and f"{path}-one"
        found.append(cx.cg(matrix(), b[:, 0], checkpoint=single, **one))
        single = path and f"{path}-eigsh"
        found.append(runs.eigsh(matrix(), single, v0=v0))
        for t, was in zip(given, before, strict=True):
            assert torch.equal(t, was)
    for with_one, without in zip(found[:3], found[6:], strict=True):
        assert_same_bits(with_one, without)


def posed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5)
    ).double()
    return (
        model,
        torch.nn.CrossEntropyLoss(),
        (torch.randn(20, 6).double(), torch.randint(5, (20,))),
    )


def begun(path):
    model, loss, data = posed()
    cx.trace(cx.HessianOperator(model, loss, data), probes=3, checkpoint=path)


def test_data_that_is_cut_otherwise_is_compared_too(tmp_path):
    begun(tmp_path)
    model, loss, (x, y) = posed()
    bent = x.clone()
    bent[3, 0] += 1e-14  # less than the matrix shows

    def again(*batches):
        cx.trace(cx.HessianOperator(model, loss, list(batches)), probes=3, checkpoint=tmp_path)

    again((x[:7], y[:7]), (x[7:], y[7:]))
    again((x[7:], y[7:]), (x[:7], y[:7]))
    for at in (7, 10):
        with pytest.raises(ValueError, match="the data is not the same"):
            again((bent[:at], y[:at]), (bent[at:], y[at:]))


def test_padding_to_the_longest_of_a_batch_is_no_change(tmp_path):
    torch.manual_seed(0)
    x = torch.randint(1, 9, (6, 5))
    x[:3, 3:] = 0
    y = torch.randint(4, (6,))

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 4, padding_idx=0)

        def forward(self, x):
            return self.table(x).sum(1)

    model, loss = Mean().double(), torch.nn.CrossEntropyLoss()
    for data in ([(x, y)], [(x[:3, :3], y[:3]), (x[3:], y[3:])], [(x[3:], y[3:]), (x[:3], y[:3])]):
        cx.trace(cx.GGNOperator(model, loss, data), probes=3, checkpoint=tmp_path)


def test_another_kronecker_product_is_named(tmp_path):
    model, loss, (x, y) = posed()

    def again(data=(x, y), **options):
        options = {"kind": "exact", **options}
        cx.trace(cx.KFACOperator(model, loss, data, **options), probes=3, checkpoint=tmp_path)

    again()
    again([(x[:7], y[:7]), (x[7:], y[7:])])
    with pytest.raises(ValueError, match="the operator is not the same: .*KFAC"):
        again(kind="mc")
    bent = x.clone()
    bent[3, 0] += 1e-14
    with pytest.raises(ValueError, match="the data is not the same"):
        again((bent, y))
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-15
    with pytest.raises(ValueError, match="the contents of the model's parameters is not the same"):
        again()


def test_another_model_loss_or_data_is_named(tmp_path):
    begun(tmp_path)
    model, loss, (x, y) = posed()

    def again(model=model, loss=loss, data=(x, y), kind=cx.HessianOperator, **options):
        cx.trace(kind(model, loss, data, **options), probes=3, checkpoint=tmp_path)

    again()
    with pytest.raises(ValueError, match="data"):
        again(data=(x, y.roll(1)))
    with pytest.raises(ValueError, match="data"):
        again(data=(x[:-1], y[:-1]))
    with pytest.raises(ValueError, match="the loss is not the same"):
        again(loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.raises(ValueError, match="the operator is not the same"):
        again(kind=cx.GGNOperator)
    with pytest.raises(ValueError, match="the shape of A is not the same"):
        again(params="0.*")
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9
    with pytest.raises(ValueError, match="the contents of the model's parameters is not the same"):
        again()
