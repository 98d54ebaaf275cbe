"""Second moments of rows, whichever way they are summed."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close

from curvext.kronecker.moments import _TRIANGLE, second_moment, symmetric_product


@pytest.mark.parametrize("width", [3, _TRIANGLE - 1, _TRIANGLE, _TRIANGLE + 45])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_second_moment_is_its_definition_at_every_width(width, weighted):
    torch.manual_seed(0)
    x = torch.randn(2, 30, width, dtype=torch.float64)
    w = torch.randn(2, 30, dtype=torch.float64)
    expected = torch.einsum("gm,gmi,gmj->gij", w if weighted else torch.ones_like(w), x, x)
    found = second_moment(x, w if weighted else None, dense=True)
    assert_close(found, expected)
    diagonal = second_moment(x, w if weighted else None, dense=False)
    assert_close(diagonal, expected.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("width", [5, _TRIANGLE + 3])
def test_a_second_moment_is_symmetric_to_the_last_bit(width):
    torch.manual_seed(0)
    x = torch.randn(1, 70, width)
    found = second_moment(x, torch.rand(1, 70), dense=True)
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("width", [3, _TRIANGLE - 1, _TRIANGLE, _TRIANGLE + 45])
def test_a_symmetric_product_of_two_is_the_product(width):
    torch.manual_seed(0)
    x = torch.randn(2, 30, width, dtype=torch.float64)
    mix = torch.randn(2, 30, 30, dtype=torch.float64)
    mixed = (mix + mix.mT) @ x
    found = symmetric_product(mixed, x)
    assert_close(found, mixed.mT @ x)
    assert torch.equal(found, found.mT)
