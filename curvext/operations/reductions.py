"""Sums, means, norms and extrema, over some dimensions or all."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from curvext.operations.flow import At, Inputs, Outputs, saved_dim, whole
from curvext.operations.node import Node, signed
from curvext.operations.operation import Operation
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def _mean(node: Node, x: Tensor) -> Tensor:
    return x.mean(_dims(node), node.saved.keepdim)


def _sum(node: Node, x: Tensor) -> Tensor:
    return x.sum(_dims(node), node.saved.keepdim)


def _dims(node: Node) -> list[int] | None:
    dims = node.saved.dim
    return None if dims is None else [signed(d) for d in dims]


def _reduced(at: At, out: Outputs) -> Inputs:
    """Sums, norms, extrema over some dimensions: what is reduced reaches what the result reaches."""
    answer: Owners | None = own.nobody(len(at.shape(0)))
    dims = sorted(saved_dim(at, len(at.shape(0))))
    for owners in out:
        if owners is not None and owners.ndim < len(at.shape(0)):
            owners = np.expand_dims(owners, tuple(dims))
        answer = own.merged(answer, owners)
    return [answer]


#: over some dimensions
_REDUCED = [
    *("AmaxBackward0", "AminBackward0", "KthvalueBackward0", "LinalgVectorNormBackward0"),
    *("LogsumexpBackward0", "MaxBackward0", "MedianBackward1", "MinBackward0", "ModeBackward0"),
    *("NanmedianBackward1", "NansumBackward0", "NormBackward1", "NormBackward3", "ProdBackward1"),
    *("StdBackward0", "StdMeanBackward0", "VarBackward0", "VarMeanBackward0"),
]
#: to one number
_WHOLE = [
    *("MaxBackward1", "MeanBackward0", "MedianBackward0", "MinBackward1", "NanmedianBackward0"),
    *("NormBackward0", "NormBackward2", "ProdBackward0", "SumBackward0"),
]

OPERATIONS = {
    **dict.fromkeys(_REDUCED, Operation(flow=_reduced)),
    **dict.fromkeys(_WHOLE, Operation(flow=whole)),
    "MeanBackward1": Operation(tangent=_mean, flow=_reduced),
    "SumBackward1": Operation(tangent=_sum, flow=_reduced),
}
