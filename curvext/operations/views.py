"""Operations that only rearrange their input: the rearrangement itself, and where samples lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from curvext.operations.flow import At, Inputs, Outputs, elementwise
from curvext.operations.node import Node, dimension, signed
from curvext.operations.operation import Operation
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def reshaped(node: Node, x: Tensor) -> Tensor:
    """Of the operations that keep the order of the elements."""
    return x.view(node.shape)


def _same(node: Node, x: Tensor) -> Tensor:
    return x


def _t(node: Node, x: Tensor) -> Tensor:
    return x.t()


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.transpose(signed(node.saved.dim0), signed(node.saved.dim1))


def _permute(node: Node, x: Tensor) -> Tensor:
    return x.permute([signed(d) for d in node.saved.dims])


def _select(node: Node, x: Tensor) -> Tensor:
    return x.select(signed(node.saved.dim), signed(node.saved.index))


def _slice(node: Node, x: Tensor) -> Tensor:
    dim = dimension(node.saved.dim, x.ndim)
    start, step = dimension(node.saved.start or 0, x.shape[dim]), node.saved.step
    index = [slice(None)] * x.ndim
    index[dim] = slice(start, start + step * node.shape[dim], step)
    return x[tuple(index)]


def _split(node: Node, x: Tensor) -> Tensor:
    return x.split(node.saved.split_size, signed(node.saved.dim))[node.which]


def _split_with_sizes(node: Node, x: Tensor) -> Tensor:
    return x.split(list(node.saved.split_sizes), signed(node.saved.dim))[node.which]


def _unbind(node: Node, x: Tensor) -> Tensor:
    return x.unbind(signed(node.saved.dim))[node.which]


# ---------------------------------------------------------------------- where samples lie


def _view_flow(at: At, out: Outputs) -> Inputs:
    return [own.reshaped(out[0], at.out_shape(), at.shape(0))]


def _transpose_flow(at: At, out: Outputs) -> Inputs:
    if out[0] is None:
        return [None]
    dims = [dimension(at.attribute(name), out[0].ndim) for name in ("dim0", "dim1")]
    return [out[0].swapaxes(*dims)]


def _t_flow(at: At, out: Outputs) -> Inputs:
    return [None if out[0] is None else out[0].T]


def _permute_flow(at: At, out: Outputs) -> Inputs:
    if out[0] is None:
        return [None]
    return [out[0].transpose(np.argsort([dimension(d, out[0].ndim) for d in at.attribute("dims")]))]


def _select_flow(at: At, out: Outputs) -> Inputs:
    shape = at.shape(0)
    dim = dimension(at.attribute("dim"), len(shape))
    return [own.placed(out[0], dim, shape[dim], dimension(at.attribute("index"), shape[dim]))]


def _slice_flow(at: At, out: Outputs) -> Inputs:
    shape = at.shape(0)
    dim = dimension(at.attribute("dim"), len(shape))
    return [own.placed(out[0], dim, shape[dim], sliced(at, shape, dim))]


def sliced(at: At, shape: Sequence[int], dim: int) -> slice:
    start, end = at.attribute("start"), at.attribute("end")
    first = None if start is None else signed(start)
    last = None if end is None else signed(end)
    return slice(*slice(first, last, at.attribute("step")).indices(shape[dim]))


def _split_flow(at: At, out: Outputs) -> Inputs:
    """Pieces along a dimension, one after the other."""
    shape = at.shape(0)
    dim = dimension(at.attribute("dim"), len(shape))
    total: Owners | None = own.nobody(len(shape))
    start = 0
    for number, owners in enumerate(out):
        stop = start + at.out_shape(number)[dim]
        total = own.merged(total, own.placed(owners, dim, shape[dim], slice(start, stop)))
        start = stop
    return [total]


def _unbind_flow(at: At, out: Outputs) -> Inputs:
    shape = at.shape(0)
    dim = dimension(at.attribute("dim"), len(shape))
    if any(owners is None for owners in out):
        return [None]
    pieces = np.broadcast_arrays(*(owners for owners in out if owners is not None))
    return [np.stack(pieces, dim)]


_RESHAPED = Operation(view=reshaped, flow=_view_flow)

OPERATIONS = {
    "AliasBackward0": Operation(view=_same, flow=elementwise),
    "CloneBackward0": Operation(view=_same, flow=elementwise),
    "PermuteBackward0": Operation(view=_permute, flow=_permute_flow),
    "ReshapeAliasBackward0": _RESHAPED,
    "ReshapeCopyBackward0": Operation(flow=_view_flow),
    "SelectBackward0": Operation(view=_select, flow=_select_flow),
    "SliceBackward0": Operation(view=_slice, flow=_slice_flow),
    "SplitBackward0": Operation(view=_split, flow=_split_flow),
    "SplitWithSizesBackward0": Operation(view=_split_with_sizes, flow=_split_flow),
    **dict.fromkeys([f"SqueezeBackward{n}" for n in (0, 1, 2)], _RESHAPED),
    **dict.fromkeys([f"SqueezeBackward{n}" for n in (3, 4, 5)], Operation(flow=_view_flow)),
    "TBackward0": Operation(view=_t, flow=_t_flow),
    "TBackward1": Operation(flow=_t_flow),
    "TransposeBackward0": Operation(view=_transpose, flow=_transpose_flow),
    "TransposeBackward1": Operation(flow=_transpose_flow),
    "UnbindBackward0": Operation(view=_unbind, flow=_unbind_flow),
    "UnsafeSplitBackward0": Operation(view=_split, flow=_split_flow),
    "UnsafeSplitWithSizesBackward0": Operation(flow=_split_flow),
    "UnsafeViewBackward0": _RESHAPED,
    "UnsqueezeBackward0": _RESHAPED,
    "UnsqueezeBackward1": Operation(flow=_view_flow),
    "ViewBackward0": _RESHAPED,
}
