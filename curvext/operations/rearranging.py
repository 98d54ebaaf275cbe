"""Operations that join, repeat, turn or cut tensors: their elements in other places, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from curvext.operations.flow import At, Flow, Inputs, Outputs, constant, each
from curvext.operations.node import dimension, dimensions, signed
from curvext.operations.operation import Operation
from curvext.operations.views import sliced
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def _select_replaced(at: At, out: Outputs) -> Inputs:
    shape = at.out_shape()
    dim = dimension(at.attribute("dim"), len(shape))
    index = dimension(at.attribute("index"), shape[dim])
    return each(at, lambda i: own.part(out[0], dim, index) if i else out[0])


def _narrowed(at: At, out: Outputs) -> Inputs:
    """A part of a tensor is replaced: the tensor, and what takes the place."""
    shape = at.out_shape()
    dim = dimension(at.attribute("dim"), len(shape))
    where = sliced(at, shape, dim)
    return each(at, lambda i: own.part(out[0], dim, where) if i else out[0])


def _stack(at: At, out: Outputs) -> Inputs:
    dim = dimension(at.attribute("dim"), len(at.out_shape()))
    return each(at, lambda i: own.part(out[0], dim, i))


def _cat(at: At, out: Outputs) -> Inputs:
    """The sizes of tensors that lead to no parameter are not kept: what lies behind two runs of them is not known."""
    whole = at.out_shape()
    dim = dimension(at.attribute("dim"), len(whole))
    if out[0] is None or out[0].shape[dim] == 1:
        return each(at, lambda i: out[0])
    sizes = [at.shape(i)[dim] if wanted else None for i, wanted in enumerate(at.inputs)]

    def of(i: int) -> Owners | None:
        before, after = sizes[:i], sizes[i + 1 :]
        size = sizes[i] or 0
        if None not in before:
            start = sum(s for s in before if s is not None)
        elif None not in after:
            start = whole[dim] - size - sum(s for s in after if s is not None)
        else:
            return None
        return own.part(out[0], dim, slice(start, start + size))

    return each(at, of)


def _repeat(at: At, out: Outputs) -> Inputs:
    owners, shape = out[0], at.shape(0)
    lead = len(at.out_shape()) - len(shape)
    owners = own.along(owners, range(lead))
    if owners is None:
        return [None]
    owners = owners.reshape(owners.shape[lead:])
    for dim, size in enumerate(shape):
        if owners is not None and owners.shape[dim] > 1:
            apart = owners.reshape(*owners.shape[:dim], -1, size, *owners.shape[dim + 1 :])
            one = own.along(apart, (dim,))
            owners = None if one is None else one.squeeze(dim)
    return [owners]


def _flip(at: At, out: Outputs) -> Inputs:
    return [
        None
        if out[0] is None
        else np.flip(out[0], tuple(dimensions(at.attribute("dims"), out[0].ndim)))
    ]


def _roll(at: At, out: Outputs) -> Inputs:
    owners = out[0]
    dims, shifts = at.attribute("dims"), at.attribute("shifts")
    if owners is None:
        return [None]
    if not dims:  # of all elements in a row
        flat = np.broadcast_to(owners, at.out_shape()).reshape(-1)
        return [np.roll(flat, -signed(shifts[0])).reshape(at.out_shape())]
    for dim, shift in zip(dimensions(dims, owners.ndim), shifts, strict=True):
        owners = np.roll(owners, -signed(shift), dim)
    return [owners]


def _pad(at: At, out: Outputs) -> Inputs:
    owners, pad, shape = out[0], [signed(p) for p in at.attribute("pad")], at.shape(0)
    for number in range(len(pad) // 2):
        dim = len(shape) - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        inside = slice(max(before, 0), at.out_shape()[dim] - max(after, 0))
        owners = own.part(owners, dim, inside)
        cut = slice(max(-before, 0), shape[dim] - max(-after, 0))
        owners = own.placed(owners, dim, shape[dim], cut)
    return [owners]


def _picked(pick: Callable[[At, Any], Any]) -> Flow:
    """What is read are some of the elements, by their numbers in the input."""

    def rule(at: At, out: Outputs) -> Inputs:
        numbers = own.numbered(at.shape(0))
        if numbers is None:
            return [None]
        return [own.gathered_from(out[0], pick(at, numbers), at.shape(0))]

    return rule


def _diagonal(at: At, numbers: Any) -> Any:
    dims = [dimension(at.attribute(name), numbers.ndim) for name in ("dim1", "dim2")]
    return np.diagonal(numbers, signed(at.attribute("offset")), *dims)


def _windows(at: At, numbers: Any) -> Any:
    dim = dimension(at.attribute("dimension"), numbers.ndim)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, at.attribute("size"), dim)
    return windows[(slice(None),) * dim + (slice(None, None, at.attribute("step")),)]


def _as_real(at: At, out: Outputs) -> Inputs:
    """Real and imaginary part in a last dimension of their own."""
    one = None if out[0] is None else own.along(out[0], (out[0].ndim - 1,))
    return [None if one is None else one[..., 0]]


def _as_complex(at: At, out: Outputs) -> Inputs:
    return [None if out[0] is None else out[0][..., None]]


def _first_alone(at: At, out: Outputs) -> Inputs:
    """Element by element in the first input; of the others every element may reach all."""
    return each(at, lambda i: out[0] if i == 0 else constant(at, i, out))


_FLOWS: dict[str, Flow] = {
    "CatBackward0": _cat,
    "ConstantPadNdBackward0": _pad,
    "DiagonalBackward0": _picked(_diagonal),
    "FlipBackward0": _flip,
    "RepeatBackward0": _repeat,
    "RollBackward0": _roll,
    "SelectScatterBackward0": _select_replaced,
    "SliceScatterBackward0": _narrowed,
    "StackBackward0": _stack,
    "UnfoldBackward0": _picked(_windows),
    "ViewAsComplexBackward0": _as_complex,
    "ViewAsRealBackward0": _as_real,
    "torch::autograd::CopySlices": _first_alone,
}

OPERATIONS = {name: Operation(flow=flow) for name, flow in _FLOWS.items()}
