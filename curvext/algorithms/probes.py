"""Random probe vectors, from a generator of their own, and the blocks in which they are multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.algorithms.products import Products
from curvext.arguments import as_seed
from curvext.progress import Progress

#: how many vectors are multiplied at a time: enough to share a pass over the data, few enough to fit
BLOCK = 16


class Probes:
    """A stream of random vectors for one operator: the same for every device and block size.

    They come from a CPU generator of their own, so that the global state of random numbers is left
    alone, and are rounded to the operator's dtype: what is multiplied is what is used.

    Args:
        products: the door to the operator.
        seed: of the stream.
    """

    def __init__(self, products: Products, seed: int) -> None:
        self._products = products
        self._generator = torch.Generator("cpu").manual_seed(
            as_seed(f"{products.caller}: seed", seed)
        )

    def signs(self, count: int) -> Tensor:
        """Independent signs ±1, ``[P, count]``; the variance of zᵀ A z is then free of A's diagonal."""
        shape = (count, self._products.size)
        bits = torch.randint(0, 2, shape, generator=self._generator, dtype=torch.int8, device="cpu")
        return self._placed(bits.mul_(2).sub_(1))

    def normals(self, count: int) -> Tensor:
        """Independent standard normals, ``[P, count]``, whose span is rotation invariant."""
        shape = (count, self._products.size)
        return self._placed(
            torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        )

    def _placed(self, rows: Tensor) -> Tensor:
        # each probe is drawn and stored as one contiguous row, so the stream does not depend on block sizes
        return representable(self._products, rows.to(self._products.device)).T


def representable(products: Products, V: Tensor) -> Tensor:
    """V rounded to what the operator takes, in the dtype that products come back in."""
    return V.to(products.dtype).to(products.working)


def basis(products: Products, columns: range) -> Tensor:
    """Some columns of the identity, ``[P, len(columns)]``."""
    eye = torch.zeros(products.size, len(columns), dtype=products.working, device=products.device)
    if len(columns):
        eye[columns.start : columns.stop].fill_diagonal_(1)
    return eye


def blocks(count: int) -> list[range]:
    """0 .. count−1 cut into runs of at most :data:`BLOCK`."""
    return [range(at, min(at + BLOCK, count)) for at in range(0, count, BLOCK)]


def multiply(products: Products, V: Tensor, bar: Progress) -> Tensor:
    """A V in float64, ``[P, K]``, block by block."""
    parts = []
    for run in blocks(V.shape[1]):
        parts.append(products.block(V[:, run.start : run.stop]).double())
        bar.to(products.count)
    return torch.cat(parts, 1) if parts else V.double()


def check_finite(caller: str, value: Tensor) -> None:
    """Raises a ValueError if the products that led to ``value`` held nan or inf."""
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{caller}: A returned nan or inf")
