"""Random probe vectors, the same for every sharding, and the blocks in which they are multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.algorithms import draws
from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.products import Products
from curvext.algorithms.vectors import units
from curvext.arguments import as_seed
from curvext.progress import Progress

#: how many vectors are multiplied at a time: enough to share a pass over the data, few enough to fit
BLOCK = 16


class Probes:
    """A stream of random vectors for one operator: the same for every device, block size and sharding.

    An entry is a function of the seed, the number of the vector and the entry's global index, computed on the CPU. So
    the global state of random numbers is left alone. Vectors are rounded to the operator's dtype: what is multiplied is
    what is used.

    Args:
        products: the door to the operator.
        seed: of the stream.
    """

    def __init__(self, products: Products, seed: int) -> None:
        self._products = products
        self._seed = as_seed(f"{products.caller}: seed", seed)
        self._signs = self._normals = 0

    def skip_signs(self, count: int) -> None:
        """Goes on after ``count`` vectors of signs that were drawn before."""
        self._signs += count

    def signs(self, count: int) -> Tensor:
        """The next independent signs ±1, ``[P_r, count]``; the variance of zᵀ A z is then free of A's diagonal."""
        numbers = range(self._signs, self._signs + count)
        self._signs = numbers.stop
        return self._placed(draws.signs(self._products.vectors, self._seed, numbers))

    def normals(self, count: int) -> Tensor:
        """The next independent standard normals, ``[P_r, count]``, whose span is rotation invariant."""
        numbers = range(self._normals, self._normals + count)
        self._normals = numbers.stop
        return self._placed(draws.normals(self._products.vectors, self._seed, numbers))

    def _placed(self, rows: Tensor) -> Tensor:
        # each probe is drawn and stored as one contiguous row, so the stream does not depend on block sizes
        return representable(self._products, rows.to(self._products.device)).T


def representable(products: Products, V: Tensor) -> Tensor:
    """V rounded to what the operator takes, in the dtype that products come back in."""
    return V.to(products.dtype).to(products.working)


def basis(products: Products, columns: range) -> Tensor:
    """Some columns of the identity, ``[P_r, len(columns)]``."""
    like = torch.empty(0, dtype=products.working, device=products.device)
    return units(products.vectors, columns, like)


def blocks(count: int, checkpoint: Checkpoint | None = None) -> list[range]:
    """0 .. count−1 cut into runs of at most :data:`BLOCK`; of 1 where a state is written after each probe."""
    size = 1 if checkpoint else BLOCK
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def multiply(
    products: Products, V: Tensor, bar: Progress, checkpoint: Checkpoint, name: str
) -> Tensor:
    """A V in float64, ``[P_r, K]``, block by block; its columns are rows ``name`` of the checkpoint."""
    known = checkpoint.rows(name)
    rows = [] if known is None else list(known)
    for run in blocks(V.shape[1], checkpoint)[len(rows) :]:
        image = products.block(V[:, run.start : run.stop]).double().T
        rows += image
        if checkpoint:
            check_finite(products, image.T, local=True)
            checkpoint.save({}, {name: image}, append=True)
        bar.to(products.count)
    return torch.stack(rows, 1) if rows else V.double()


def check_finite(products: Products, value: Tensor, local: bool = False) -> None:
    """Raises a ValueError if the products that led to ``value`` held nan or inf.

    Args:
        products: the door to the operator.
        value: numbers that all processes share, or with ``local`` the entries of this one, ``[P_r, ...]``.
        local: the latter.
    """
    sound = products.vectors.all_finite(value) if local else bool(torch.isfinite(value).all())
    if not sound:
        raise ValueError(f"{products.caller}: A returned nan or inf")
