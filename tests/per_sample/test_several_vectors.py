"""Several vectors in one backward pass give what passes of one give, or are not taken."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from models import CASES
from problems import pose
from torch import nn

import curvext as cx
from curvext.per_sample import several_vectors
from curvext.per_sample.several_vectors import SeveralVectors


@pytest.fixture
def taken(monkeypatch):
    """How many vectors the passes of several took."""
    found, run = [], SeveralVectors.run

    def counted(self, cotangents):
        uses = run(self, cotangents)
        found.append(0 if uses is None else len(cotangents))
        return uses

    monkeypatch.setattr(SeveralVectors, "run", counted)
    return found


def one_by_one(monkeypatch):
    monkeypatch.setattr(several_vectors, "_AT_ONCE", 0)


@pytest.mark.parametrize("name", CASES)
def test_the_diagonal_is_that_of_passes_of_one_vector(name, taken, monkeypatch):
    posed = pose(name)
    got = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    again = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    one_by_one(monkeypatch)
    count = len(taken)
    expected = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    assert len(taken) == count
    for key in expected:
        assert_close(got[key], expected[key], key, scale=1e-6)
        assert torch.equal(again[key], got[key])


ORDINARY = (
    *("linear", "mlp", "conv2d", "conv2d_groups", "conv2d_depthwise", "conv3d", "cnn"),
    *("layer_norm", "group_norm", "batch_norm_2d", "prelu"),
)


@pytest.mark.parametrize("name", ORDINARY)
def test_they_are_taken_for_what_most_networks_are_made_of(name, taken):
    posed = pose(name)
    cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    assert taken and all(taken)


def test_a_little_memory_takes_a_few_vectors_at_a_time(taken, monkeypatch):
    posed = pose("conv2d")
    whole = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    (outputs,) = taken
    shapes = [(len(posed.y), 3, 3, 3), (len(posed.y), outputs)]
    of_one = sum(8 * torch.Size(shape).numel() for shape in shapes)
    monkeypatch.setattr(several_vectors, "_AT_ONCE", 2 * of_one)
    taken.clear()
    got = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    assert taken == [2] * (outputs // 2)  # what is left over goes alone
    for key in whole:
        assert_close(got[key], whole[key], key)


@pytest.mark.parametrize("loss", ["custom", "bce", "mse", "smooth_l1"])
def test_columns_of_both_signs_are_added_with_theirs(loss, taken, monkeypatch):
    posed = pose("mlp", loss)
    got = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    assert all(taken) and len(taken) == (2 if loss == "custom" else 1)
    one_by_one(monkeypatch)
    expected = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    for key in expected:
        assert_close(got[key], expected[key], key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_reduced_precision_sum_in_float32(dtype, monkeypatch):
    posed = pose("mlp", dtype=dtype)
    got = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    one_by_one(monkeypatch)
    expected = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    for key in expected:
        assert got[key].dtype is torch.float32
        assert_close(got[key], expected[key], key, tol=1e-2)


class _Cubed(torch.autograd.Function):
    """x³, written in Python."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * u


def test_a_function_written_in_python_sees_one_vector_at_a_time(taken):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(_Cubed.apply(self.a(x)))

    torch.manual_seed(0)
    model, data = Net().double(), (torch.randn(6, 4).double(), torch.randint(3, (6,)))
    got = cx.ggn_diagonal(model, nn.CrossEntropyLoss(), data)
    assert not taken
    model.forward = lambda x: model.b(model.a(x) ** 3)
    expected = cx.ggn_diagonal(model, nn.CrossEntropyLoss(), data)
    assert taken
    for key in expected:
        assert_close(got[key], expected[key], key)


def test_where_an_operation_takes_no_batch_the_passes_of_one_vector_answer(taken, monkeypatch):
    posed = pose("mlp")
    expected = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
    grad = torch.autograd.grad

    def refusing(*args, is_grads_batched=False, **options):
        if is_grads_batched:
            raise RuntimeError("vmap: this operation is not supported")
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", refusing)
    taken.clear()
    for _ in range(2):
        got = cx.ggn_diagonal(posed.model, posed.loss, posed.data)
        for key in expected:
            assert_close(got[key], expected[key], key)
    assert taken == [0]  # its plan remembers
