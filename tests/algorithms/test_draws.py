"""Draws that depend on seed, number and index alone, and are random as far as moments see."""

from __future__ import annotations

import pytest
import torch
from sharded_matrix import LAYOUTS, dense, sharded

from curvext.algorithms import draws
from curvext.algorithms.products import Products
from curvext.algorithms.vectors import Vectors

MANY = Vectors(200_000)
DRAWS = {"signs": draws.signs, "normals": draws.normals}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_does_not_depend_on_its_neighbours(kind):
    draw = DRAWS[kind]
    all_of_them = draw(Vectors(70_000), 3, range(70))
    for number in (0, 1, 63, 64, 69):
        assert torch.equal(
            draw(Vectors(70_000), 3, range(number, number + 1))[0], all_of_them[number]
        )
    assert torch.equal(draw(Vectors(100), 3, range(70)), all_of_them[:, :100])


@pytest.mark.parametrize("kind", DRAWS)
def test_what_is_drawn_differs_by_seed_number_and_kind(kind):
    one, two = DRAWS[kind](MANY, 0, range(2)).double()
    other = DRAWS[kind](MANY, 1, range(1))[0].double()
    negative = DRAWS[kind](MANY, -1, range(1))[0].double()
    signs = draws.signs(MANY, 0, range(1))[0].double()
    found = [one, two, other, negative, *([signs] if kind == "normals" else [])]
    gram = torch.stack(found) @ torch.stack(found).T / len(one)
    assert float((gram - gram.diag().diag()).abs().max()) < 5 / len(one) ** 0.5


def test_moments_are_those_of_the_distributions():
    count = MANY.local
    normals = draws.normals(MANY, 5, range(1))[0]
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((normals**power).mean()) - moment) < 5 * (variance / count) ** 0.5
    signs = draws.signs(MANY, 5, range(1))[0]
    assert set(signs.tolist()) == {-1, 1}
    for values in (signs.double(), normals):
        for lag in (1, 2, 3, 64, 1 << 15):
            assert abs(float((values[lag:] * values[:-lag]).mean())) < 5 / count**0.5


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_entries_are_those_of_the_whole_vector(kind, layout):
    matrix = dense()
    whole = DRAWS[kind](Vectors(len(matrix)), 7, range(3))
    found = torch.empty_like(whole)
    i = torch.arange(len(matrix))
    sums = [3, len(matrix), int(i.sum()), int((i * i).sum())]  # what all ranks say
    said = torch.tensor([[float(n >> 12 * at & 0xFFF) for n in sums for at in range(5)]])
    for rank in range(3):
        A = sharded(matrix, layout, rank, 3)
        A.inner = lambda a, b: said
        vectors = Products(A, "test", sharded=True).vectors
        found[:, A.entries] = DRAWS[kind](vectors, 7, range(3))
    assert torch.equal(found, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(90,), (90, 1), (90, 3)])
def test_a_fingerprint_leaves_the_vector_alone_and_does_not_depend_on_the_sharding(dtype, shape):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(99).to(dtype)
    before = t.clone()
    whole = draws.fingerprint(Vectors(90), t)
    assert torch.equal(t, before)
    assert draws.fingerprint(Vectors(90), t) == whole != draws.fingerprint(Vectors(90), t.flip(0))
    found = 0
    for entries in (torch.arange(0, 90, 2), torch.arange(1, 90, 2), torch.arange(0)):
        vectors = Vectors(90)
        vectors.local, vectors.entries = len(entries), lambda i, j, at=entries: at[i:j]
        found += draws.fingerprint(vectors, t[entries])  # of none, too
    assert found % (1 << 60) == whole
