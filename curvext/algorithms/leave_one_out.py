"""A random sketch of a symmetric matrix, and what it would have been without each of its probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.probes import multiply, representable
from curvext.algorithms.products import Products
from curvext.progress import Progress

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Sketch:
    """Y = A Ω for probes Ω ``[P, k]``, an orthonormal basis Q of its range, and all ranges with one column left out.

    Without column i the range loses the one direction Q s_i that no other column has, so
    Q₍ᵢ₎ Q₍ᵢ₎ᵀ = Q (I − s_i s_iᵀ) Qᵀ (Epperly, Tropp & Webber 2024, section 3). Where the other columns span
    column i as well, as they do for a matrix of rank less than k, nothing is lost and s_i = 0.

    Attributes:
        probes: Ω, ``[P, k]``, float64 as all that follows.
        image: Y = A Ω, ``[P, k]``.
        basis: Q, ``[P, r]``, r the numerical rank of Y.
        basis_image: A Q, ``[P, r]``.
        coordinates: QᵀY, ``[r, k]``.
        lost: the s_i, ``[r, k]``: unit columns, or zeros.
    """

    probes: Tensor
    image: Tensor
    basis: Tensor
    basis_image: Tensor
    coordinates: Tensor
    lost: Tensor

    @property
    def full(self) -> bool:
        """Whether every column adds a direction; else A is of rank r, and every estimate from Q is exact."""
        return len(self.coordinates) == self.probes.shape[1] > 1

    def also_lost(self, i: Tensor, j: Tensor) -> Tensor:
        """The unit direction that the range loses when column j goes after column i has gone, ``[r, n]``.

        Args:
            i, j: pairs of different columns, ``[n]``.
        """
        gone, direction = self.lost[:, i], self.lost[:, j]
        for _ in range(2):  # nearly parallel ones lose digits in the first subtraction
            direction = direction - gone * (gone * direction).sum(0)
            direction = direction / direction.norm(dim=0).clamp(min=_TINY)
        return direction


def mean_of_left_out(samples: Tensor, covariance: Tensor | float) -> tuple[Tensor, Tensor]:
    """The mean of the k leave-one-out estimates and its standard error.

        Var(mean) = E[s²/k + C],   C = mean_{i≠j} (t_i − t_i|j) (t_j − t_j|i)

    with t_i the estimate by probe i from the range of all others, and t_i|j the one from the range of all but i and
    j. The two t_i|j, t_j|i are uncorrelated, and the other cross terms vanish because each estimate is
    unbiased whatever range it is given. So C is an unbiased estimate of the covariance, which s²/k alone, the
    error estimate of Epperly, Tropp & Webber (2024), leaves out.

    Args:
        samples: ``[k, ...]``.
        covariance: C, ``[...]``.
    """
    count = len(samples)
    if count == 1:
        return samples[0], torch.full_like(samples[0], torch.inf)
    variance = samples.var(0) / count + torch.as_tensor(covariance, device=samples.device).clamp(
        min=0
    )
    return samples.mean(0), variance.sqrt()


def pairs(count: int, i: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs (i, j) with i < j, as two index vectors."""
    j = torch.arange(i + 1, count, device=device)
    return torch.full_like(j, i), j


def sketch(products: Products, probes: Tensor, bar: Progress, checkpoint: Checkpoint) -> Sketch:
    """The sketch of A by ``probes`` ``[P, k]``, k < P; 2k products, fewer where A Ω is of lower rank."""
    image = multiply(products, probes, bar, checkpoint, "image")
    rows = checkpoint.rows("basis")
    if rows is None:
        basis, lost = _basis(products, image)
        # made anew it may have other signs, while the products below are of this one
        checkpoint.save({"lost": lost}, {"basis": basis.T}, append=True)
    else:
        basis, lost = rows.T, checkpoint.numbers["lost"].to(image.device)
    door = representable(products, basis)
    basis_image = multiply(products, door, bar, checkpoint, "basis_image")
    return Sketch(
        probes.double(), image, basis, basis_image, products.vectors.inner(basis, image), lost
    )


def _basis(products: Products, image: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis ``[P, r]`` of the range of ``[P, k]``, and what is lost with each column, ``[r, k]``."""
    full, triangle = products.vectors.qr(image)
    left, sizes, right = torch.linalg.svd(triangle)
    # the dropped directions belong to the part outside Q, which every estimate adds: nothing is lost
    floor = 8 * torch.finfo(products.dtype).eps * (sizes[0] if len(sizes) else 0.0)
    rank = int((sizes > floor).sum())
    right = right[:rank]
    lost = right / sizes[:rank, None]
    lost = lost / lost.norm(dim=0).clamp(min=_TINY)
    # column i stands alone where the projection onto the rows has its 1 at (i, i)
    alone = right.square().sum(0) > 1 - 1e-8
    # in the order of memory in which a checkpoint gives them back, as products of matrices round by it
    rows = (full @ left[:, :rank]).T.contiguous()
    return rows.T, torch.where(alone, lost, 0.0).contiguous()
