"""Fused recurrent layers, and packed sequences."""

from __future__ import annotations

import numpy as np

from curvext.operations.flow import At, Inputs, Outputs
from curvext.operations.operation import GraphUse, Operation
from curvext.samples import owners as own
from curvext.torch_internals.switches import without_cudnn, without_mkldnn


def _packed(at: At, out: Outputs) -> Inputs:
    """Padded sequences [T, N, ...], or [N, T, ...], step after step without their padding."""
    shape, owners = at.shape(0), out[0]
    first = bool(at.attribute("batch_first"))
    steps, width = (shape[1], shape[0]) if first else (shape[0], shape[1])
    owners = own.along(owners, range(1, len(shape) - 1))
    if owners is None:
        return [None]
    sizes = [int(n) for n in at.values("result1")]
    read = np.full((steps, width), own.NOBODY, dtype=np.int64)
    rows = np.broadcast_to(owners.reshape(owners.shape[0]), (sum(sizes),))
    start = 0
    for step, size in enumerate(sizes):
        read[step, :size] = rows[start : start + size]
        start += size
    return [(read.T if first else read).reshape(*shape[:2], *(1,) * (len(shape) - 2))]


#: unrolled, each step of a recurrent layer is an ordinary product with its weights
_ALWAYS: tuple[GraphUse, ...] = ("backward", "linearised", "doubled", "twice", "traced", "plain")

OPERATIONS = {
    "MkldnnRnnLayerBackward0": Operation(alternatives=dict.fromkeys(_ALWAYS, without_mkldnn)),
    "CudnnRnnBackward0": Operation(alternatives=dict.fromkeys(_ALWAYS, without_cudnn)),
    "PackPaddedSequenceBackward0": Operation(flow=_packed),
}
