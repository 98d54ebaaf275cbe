"""Flow of products: matrices, convolutions, distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curvext.operations.flow.rule import At, Inputs, Outputs, Rule, constant, each
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def _mm(at: At, out: Outputs) -> Inputs:
    return [*_factors(at, out[0], 0)]


def _addmm(at: At, out: Outputs) -> Inputs:
    bias = own.summed_to(out[0], at.shape(0)) if at.inputs[0] else None
    return [bias, *_factors(at, out[0], 1)]


def _factors(at: At, out: Owners | None, first: int) -> Iterator[Owners | None]:
    """Of y = A B the rows of A reach the rows of y, the columns of B its columns."""
    yield own.along(out, (out.ndim - 1,)) if out is not None else None
    right = own.along(out, (out.ndim - 2,)) if out is not None else None
    if right is None and out is not None and at.inputs[first + 1] and not at.inputs[first]:
        right = _through_constant(at, out, first)
    yield right


def _through_constant(at: At, out: Owners, first: int) -> Owners | None:
    """y = A B with a fixed square matrix A, of neighbours in a graph, say: where it is zero nothing flows."""
    height, width = at.out_shape()[0], at.shape(first + 1)[0]
    if out.ndim != 2 or height != width or at.is_parameter(first + 1) or out.shape[1] != 1:
        return None
    matrix = at.values("mat1" if first else "self")
    if matrix is None:
        return None
    row, column = np.nonzero(matrix)
    found = own.gathered_from(out[:, 0][row], column, (width,))
    return None if found is None else found[:, None]


def _sparse_addmm(at: At, out: Outputs) -> Inputs:
    """y = M + A B with A sparse: where it has no entry nothing flows."""
    answer = each(at, lambda i: None)
    if at.inputs[0]:
        answer[0] = own.summed_to(out[0], at.shape(0))
    if not at.inputs[2] or out[0] is None or out[0].shape[1] != 1:
        return answer
    row, column = at.values("mat1")
    whole = own.expanded(out[0], 0, at.out_shape()[0])[:, 0]
    found = own.gathered_from(whole[row], column, at.shape(2)[:1])
    answer[2] = None if found is None else found[:, None]
    return answer


def _mv(at: At, out: Outputs) -> Inputs:
    """y = A v."""
    rows = None if out[0] is None else out[0][:, None]
    return each(at, lambda i: rows if i == 0 else constant(at, i, out))


def _trilinear(at: At, out: Outputs) -> Inputs:
    """y = Σ a b c, each spread along dimensions that it lacks."""
    whole = out[0]
    if whole is None:
        return [None] * 3
    for dim in sorted(at.attribute("sumdim")):
        whole = np.expand_dims(whole, dim)

    def of(i: int) -> Owners | None:
        lacks = tuple(at.attribute(f"expand{i + 1}"))
        one = own.along(whole, lacks)
        return None if one is None else one.squeeze(lacks)

    return each(at, of)


def _convolution(at: At, out: Outputs) -> Inputs:
    """Images each for itself; the kernel sees all."""
    mixed = own.along(out[0], range(1, out[0].ndim)) if out[0] is not None else None
    return each(at, lambda i: mixed if i == 0 else constant(at, i, out))


def _cdist(at: At, out: Outputs) -> Inputs:
    """Distances [..., P, M] of rows [..., P, D] and [..., M, D]."""

    def of(i: int) -> Owners | None:
        one = own.along(out[0], (out[0].ndim - 1 - i,)) if out[0] is not None else None
        one = one if one is None or i == 0 else one.swapaxes(-1, -2)
        return own.summed_to(one, (*at.shape(i)[:-1], 1))

    return each(at, of)


RULES: dict[str, Rule] = {
    "Addmm": _addmm,
    "Baddbmm": _addmm,
    "Bmm": _mm,
    "Cdist": _cdist,
    "Convolution": _convolution,
    "Mm": _mm,
    "Mv": _mv,
    "SparseAddmm": _sparse_addmm,
    "Trilinear": _trilinear,
}
