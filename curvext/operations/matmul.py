"""Products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.structured import StructuredGradient
from curvext.operations.broadcasting import broadcast_gradient
from curvext.operations.flow import At, Inputs, Outputs, constant, each
from curvext.operations.node import Node, Saved
from curvext.operations.operation import Operation, OutputGradient, Product
from curvext.samples import owners as own
from curvext.samples.owners import Owners

# ---------------------------------------------------------------------- per-sample gradients


def _right(at: OutputGradient, left: Tensor, alpha: float = 1) -> StructuredGradient | None:
    """y = α A W with W [I, O]: the gradient of W is α Aᵀ g."""
    if at.layout.dim != 0 or at.g.is_sparse:
        return None
    return OuterGradient(at.by_sample(left), at.by_sample(_times(at.g, alpha)), transposed=True)


def _left(at: OutputGradient, right: Tensor, alpha: float = 1) -> StructuredGradient | None:
    """y = α W B with W [O, I]: the samples lie along the columns."""
    if at.layout.dim != 1:
        return None
    rows, g = at.layout.along(0), _times(at.g, alpha)
    return OuterGradient(
        rows.samples_first(right.t(), at.samples), rows.samples_first(g.t(), at.samples)
    )


def _batched_right(at: OutputGradient) -> StructuredGradient | None:
    """y_b = A_b W_b with W [B, I, O]; einsum arrives here with B = 1."""
    if at.layout.dim != 1 or at.g.shape[0] != 1:
        return None
    rows, left = at.layout.along(0), at.saved.self
    return OuterGradient(
        rows.samples_first(left[0], at.samples),
        rows.samples_first(at.g[0], at.samples),
        transposed=True,
    )


def _times(t: Tensor, factor: float) -> Tensor:
    return t if factor == 1 else t * factor


# ---------------------------------------------------------------------- tangents


def _addmm(
    node: Node, bias: Tensor | None, left: Tensor | None, right: Tensor | None
) -> Tensor | None:
    """ẏ of y = β b + α A B."""
    tangent: Tensor | None = None
    if bias is not None:
        beta = node.saved.beta
        tangent = (bias if beta == 1 else beta * bias).expand(node.shape)
    return _add_products(tangent, node, ("mat1", "mat2"), left, right, node.saved.alpha)


def _mm(node: Node, left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return _add_products(None, node, ("self", "mat2"), left, right, 1)


def _add_products(
    tangent: Tensor | None,
    node: Node,
    names: tuple[str, str],
    left: Tensor | None,
    right: Tensor | None,
    alpha: float,
) -> Tensor | None:
    """tangent + α (Ȧ B + A Ḃ), each product added where it is computed."""
    factors = []
    if right is not None:
        factors.append((getattr(node.saved, names[0]), right))
    if left is not None:
        factors.append((left, getattr(node.saved, names[1])))
    fresh = False
    for a, b in factors:
        if tangent is None:
            tangent = a @ b if alpha == 1 else alpha * (a @ b)
        elif fresh:
            tangent.addmm_(a, b, alpha=alpha)
        else:
            tangent = torch.addmm(tangent, a, b, alpha=alpha)
        fresh = True
    return tangent


def _bmm(node: Node, left: Tensor | None, right: Tensor | None) -> Tensor | None:
    tangent = None if right is None else torch.bmm(node.saved.self, right)
    if left is None:
        return tangent
    other = node.saved.mat2
    return torch.bmm(left, other) if tangent is None else tangent.baddbmm_(left, other)


# ---------------------------------------------------------------------- where samples lie


def _mm_flow(at: At, out: Outputs) -> Inputs:
    return [*_factors(at, out[0], 0)]


def _addmm_flow(at: At, out: Outputs) -> Inputs:
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


def _sparse_addmm_flow(at: At, out: Outputs) -> Inputs:
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


def _mv_flow(at: At, out: Outputs) -> Inputs:
    """y = A v."""
    rows = None if out[0] is None else out[0][:, None]
    return each(at, lambda i: rows if i == 0 else constant(at, i, out))


def _dot_flow(at: At, out: Outputs) -> Inputs:
    """Every element of an input may reach every element of the outputs."""
    meeting: Owners | None = own.nobody(0)
    for owners in out:
        meeting = own.merged(meeting, own.constant(owners, 0))
    return each(at, lambda i: own.constant(meeting, len(at.shape(i))))


def _trilinear_flow(at: At, out: Outputs) -> Inputs:
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


def _is_unscaled(saved: Saved) -> bool:
    return saved.alpha == 1 and saved.beta == 1


OPERATIONS = {
    "AddmmBackward0": Operation(
        per_sample={
            0: lambda at: broadcast_gradient(at, _times(at.g, at.saved.beta)),
            1: lambda at: _left(at, at.saved.mat2, at.saved.alpha),
            2: lambda at: _right(at, at.saved.mat1, at.saved.alpha),
        },
        tangent=_addmm,
        flow=_addmm_flow,
        multilinear=True,
        product=Product(1, 2, bias=0, factors=("mat1", "mat2"), unscaled=_is_unscaled),
    ),
    "BaddbmmBackward0": Operation(flow=_addmm_flow),
    "BmmBackward0": Operation(
        per_sample={1: _batched_right}, tangent=_bmm, flow=_mm_flow, product=Product(0, 1)
    ),
    "DotBackward0": Operation(flow=_dot_flow),
    "MmBackward0": Operation(
        per_sample={
            0: lambda at: _left(at, at.saved.mat2),
            1: lambda at: _right(at, at.saved.self),
        },
        tangent=_mm,
        flow=_mm_flow,
        multilinear=True,
        product=Product(0, 1, factors=("self", "mat2")),
    ),
    "MvBackward0": Operation(flow=_mv_flow),
    "SparseAddmmBackward0": Operation(flow=_sparse_addmm_flow),
    "TrilinearBackward0": Operation(flow=_trilinear_flow),
    "VdotBackward0": Operation(flow=_dot_flow),
}
