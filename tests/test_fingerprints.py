"""Numbers that tell of a change: which changes they see, and which order they go by."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import curvext.fingerprints
from curvext.fingerprints import _weights_for, fingerprints, portable_fingerprint, sample_hashes

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

X = torch.randn(4, 3, 6, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_element_is_seen(dtype):
    t = torch.ones(3, 5).to(dtype)
    changed = t.clone()
    changed[1, 2] = 0
    assert fingerprints([t]) == fingerprints([t.clone()]) != fingerprints([changed])
    assert (
        sample_hashes((t, Y[:3]))
        == sample_hashes((t.clone(), Y[:3]))
        != sample_hashes((changed, Y[:3]))
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(64, 64), (4096,), (8, 4, 3, 3), (1, 7), (5, 3), (300, 200), (20_001,)]
)
@pytest.mark.parametrize(
    "change",
    [
        torch.neg,
        lambda t: 2 * t,
        lambda t: t / 2,
        lambda t: t.flip(0) if t.shape[0] > 1 else t.flip(1),
        lambda t: t.flip(-1),
        lambda t: t.roll(1, -1),
        lambda t: t.abs(),
        torch.zeros_like,
    ],
)
def test_changes_that_keep_many_bits_are_seen(dtype, shape, change):
    torch.manual_seed(0)
    t = torch.randn(shape).to(dtype)
    assert fingerprints([t]) != fingerprints([change(t)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_smallest_change_of_one_element_among_many_is_seen(dtype):
    t = torch.randn(1000, 100, dtype=dtype)
    changed = t.clone()
    changed[500, 50] = torch.nextafter(t[500, 50], torch.tensor(9.0, dtype=dtype))
    assert fingerprints([t]) != fingerprints([changed])


def test_a_tensor_with_nan_has_contents_that_can_be_compared():
    t = torch.tensor([1.0, torch.nan, -torch.inf])
    assert fingerprints([t]) == fingerprints([t.clone()])


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_samples_do_not_depend_on_where_a_tensor_lies(offset):
    t = torch.randn(40)
    lying = torch.zeros(60)[offset : offset + 40].copy_(t)
    assert sample_hashes((lying.view(4, 10), Y)) == sample_hashes((t.view(4, 10), Y))


def test_fingerprints_are_the_same_under_autocast():
    t = torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fingerprints([t])
    assert inside == fingerprints([t])


def test_fingerprints_stay_the_same_when_larger_tensors_come():
    small = (torch.randn(3, 50), torch.arange(3))
    before = fingerprints(small), sample_hashes(small)
    large = (torch.randn(2, 60_000), torch.arange(2), torch.randn(60_000))
    fingerprints(large), sample_hashes(large)
    assert (fingerprints(small), sample_hashes(small)) == before


def test_samples_in_another_order_have_the_same_first_number_and_another_second():
    order = torch.tensor([2, 0, 3, 1])
    one, other = sample_hashes((X, Y)), sample_hashes((X[order], Y[order]))
    assert one[0] == other[0] and one[1] != other[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x.flip(2), y),
        lambda x, y: (x.flip(1), y),
        lambda x, y: (x.roll(1, 2), y),
        lambda x, y: (x, y.roll(1)),
        lambda x, y: (x.neg() if x.is_floating_point() else 255 - x, y),
        lambda x, y: (torch.cat([x[:1].flip(2), x[1:]]), y),
    ],
)
def test_augmented_samples_are_other_samples(dtype, change):
    x = (X * 40).to(dtype)
    assert sample_hashes((x, Y))[0] != sample_hashes(change(x, Y))[0]


def test_large_samples_are_read_in_runs_with_the_same_numbers(monkeypatch):
    x = torch.randn(7, 30)
    whole = sample_hashes((x, torch.arange(7)))
    monkeypatch.setattr("curvext.fingerprints._AT_ONCE", 31)
    assert sample_hashes((x, torch.arange(7))) == whole


def test_weights_that_were_outgrown_stay_where_another_stream_may_read_them(monkeypatch):
    monkeypatch.setattr("curvext.fingerprints._weights", {})
    monkeypatch.setattr("curvext.fingerprints._outgrown", [])
    short = _weights_for(torch.ones(10, dtype=torch.float64))
    long = _weights_for(torch.ones(5000, dtype=torch.float64))
    assert [w.data_ptr() for w in curvext.fingerprints._outgrown] == [short.data_ptr()]
    assert torch.equal(long[:10], short)  # the same for the same number of values


# ---------------------------------------------------------------------- fingerprints


def in_another_process(code):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch, curvext.fingerprints as c\n" + code],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_a_fingerprint_is_the_same_in_another_process_whatever_was_read_before():
    several = [torch.arange(70_001.0), torch.arange(5).to(torch.int16)]
    portable_fingerprint([torch.zeros(40_000_000, dtype=torch.bool)])  # needs many weights
    code = (
        "print(c.portable_fingerprint([torch.arange(70_001.0), torch.arange(5).to(torch.int16)]))"
    )
    assert in_another_process(code) == portable_fingerprint(several)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.bool])
@pytest.mark.parametrize("size", [1, 7, 1 << 14, (1 << 14) + 3, 150_001])
def test_a_fingerprint_sees_any_entry_and_no_address(dtype, size):
    t = torch.arange(size).to(dtype)
    before = portable_fingerprint([t])
    shifted = torch.cat([t[:1], t])[1:]  # elsewhere in memory, and not aligned
    assert portable_fingerprint([shifted]) == before
    for place in {0, size // 2, size - 1}:
        changed = t.clone()
        changed[place] = ~changed[place] if dtype is torch.bool else changed[place] + 1e6
        assert portable_fingerprint([changed]) != before


@pytest.mark.parametrize(
    "other",
    [
        lambda t: -t,
        lambda t: t.flip(0),
        lambda t: t.view(2, -1),
        lambda t: t.double(),
        lambda t: torch.cat([t, t.new_zeros(1)]),
        lambda t: t * 2,
    ],
)
def test_a_fingerprint_sees_sign_order_shape_and_dtype(other):
    t = torch.randn(40_000)
    assert portable_fingerprint([t]) != portable_fingerprint([other(t)])


def test_the_fingerprint_of_nothing_is_one_too():
    of_nothing = ([], [torch.zeros(0)], [torch.zeros(0, 2)])
    assert len({portable_fingerprint(several) for several in of_nothing}) == 3
