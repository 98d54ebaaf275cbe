"""What counts as a batch, and reading data without leaving a trace."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import curvext as cx
from curvext.data import Batches, is_batch, sample, tensors

Pair = namedtuple("Pair", "inputs labels")
X, Y = torch.randn(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    "data, one",
    [
        ((X, Y), True),
        ([X, Y], True),
        (Pair(X, Y), True),
        ({"input_ids": X, "labels": Y}, True),
        (({"a": X}, Y), True),
        ([(X, Y)], False),
        (((X, Y), (X, Y)), False),
        ([Pair(X, Y)], False),
        ([{"labels": Y}], False),
        ([(X, Y), (X, Y)], False),
        ([[X, Y], [X, Y]], False),
        (([X, Y], [X, Y]), False),
    ],
    ids=range(12),
)
def test_a_pair_or_mapping_is_one_batch_and_a_list_of_them_is_many(data, one):
    assert is_batch(data) is one
    assert len(list(Batches(data))) == (1 if one else len(data))


def test_a_data_loader_gives_its_batches_again_on_every_pass():
    batches = Batches(DataLoader(TensorDataset(X, Y), batch_size=3))
    for _ in range(2):
        assert [len(y) for _, y in batches] == [3, 1]


def test_a_pass_leaves_the_global_generator_as_it_was():
    batches = Batches(DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True))
    before = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), before)
    iterator = iter(batches)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    moved = torch.get_rng_state()
    next(iterator)
    assert torch.equal(torch.get_rng_state(), moved)


@pytest.mark.parametrize(
    "data, error, message",
    [
        (iter([(X, Y)]), TypeError, "one-shot list_iterator.*pass list"),
        ((b for b in [(X, Y)]), TypeError, "one-shot generator"),
        (zip([X], [Y], strict=True), TypeError, "one-shot zip"),
        (TensorDataset(X, Y), TypeError, "got a Dataset; wrap it as torch.utils.data.DataLoader"),
        (X, TypeError, "data: expected a batch"),
        (7, TypeError, "data: expected a batch.*got int"),
        (None, TypeError, "got NoneType"),
        ([], ValueError, "data: empty"),
    ],
    ids=range(8),
)
def test_data_that_cannot_be_read_twice_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        Batches(data)


def test_a_sample_is_one_row_of_every_tensor_of_the_batch():
    batch = {
        "ids": X,
        "more": {"mask": Y},
        "temperature": torch.tensor(2.0),
        "table": torch.ones(7, 2),
    }
    one = sample(batch, 2, 4)
    assert torch.equal(one["ids"], X[2:3]) and torch.equal(one["more"]["mask"], Y[2:3])
    assert one["temperature"] == 2 and one["table"].shape == (7, 2)
    x, y = sample((X, Y), 0, 4)
    assert torch.equal(x, X[:1]) and torch.equal(y, Y[:1])


def test_tensors_are_found_in_nested_batches():
    assert len(tensors({"a": X, "b": [Y, {"c": X}], "n": 3})) == 3


def test_a_batch_of_three_is_refused_with_the_two_lines_that_take_it():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    batch = (x, y, torch.arange(4))
    model, loss = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
    with pytest.raises(
        ValueError, match=r"got 3 entries.*forward=lambda.*target=lambda batch: batch\[1\]"
    ):
        cx.EmpiricalRisk(model, loss, batch).value()
    taken = cx.EmpiricalRisk(
        model, loss, batch, forward=lambda m, b: m(b[0]), target=lambda b: b[1]
    )
    assert taken.value() == cx.EmpiricalRisk(model, loss, (x, y)).value()
