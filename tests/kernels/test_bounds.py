import pytest
import torch
from bounds import assert_within, slice_of_larger


def test_a_planted_error_beyond_the_bound_raises():
    exact = torch.ones(2, 3, dtype=torch.float64)
    wrong = exact.clone()
    wrong[1, 2] += 1e-6
    with pytest.raises(AssertionError, match=r"first at \(1, 2\)"):
        assert_within(wrong, exact, torch.full_like(exact, 1e-7), "planted")


def test_an_error_within_the_bound_passes():
    exact = torch.ones(2, dtype=torch.float64)
    assert_within(exact + 1e-8, exact, torch.full_like(exact, 1e-7), "small")


def test_a_nan_never_passes():
    exact = torch.ones(1, dtype=torch.float64)
    with pytest.raises(AssertionError, match="nan"):
        assert_within(exact * float("nan"), exact, exact * 1e9, "nan")


def test_a_wrong_shape_never_passes():
    exact = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(exact[0], exact, exact, "shape")


def test_a_slice_of_a_larger_buffer_holds_the_same_values():
    tensor = torch.randn(2, 3)
    view = slice_of_larger(tensor)
    assert torch.equal(view, tensor) and not view.is_contiguous()
