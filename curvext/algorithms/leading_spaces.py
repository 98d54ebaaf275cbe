"""Leading eigenpairs of several matrices, and how far their spaces overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.algorithms.products import Products

#: eigenvalues, vectors and residuals, the largest in magnitude first
Pairs = tuple[Tensor, Tensor, Tensor]


def leading_of(matrix: Tensor, k: int, door: Products) -> Pairs:
    values, vectors = torch.linalg.eigh(matrix)
    at = values.abs().argsort(descending=True, stable=True)[:k]
    return ordered(values[at], vectors[:, at], torch.zeros_like(values[at]), door)


def ordered(values: Tensor, vectors: Tensor, residuals: Tensor, door: Products) -> Pairs:
    """Sorted by magnitude, without those within their error of zero, whose vectors are arbitrary."""
    at = values.abs().argsort(descending=True, stable=True)
    values, vectors, residuals = values[at].double(), vectors[:, at].double(), residuals[at]
    floor = torch.finfo(door.dtype).eps ** (2 / 3) * values.abs().max()
    there = values.abs() > residuals.double().clamp(min=float(floor))
    return values[there], vectors[:, there], residuals[there].double()


def overlap(one: Pairs, other: Pairs) -> float:
    """‖UᵀV‖²/k of the leading k that both have; nan where there are none."""
    k = min(len(one[0]), len(other[0]))
    if k == 0:
        return float("nan")
    return float((one[1][:, :k].T @ other[1][:, :k]).square().sum()) / k
