"""Matrix functions and decompositions, traces, cross products and distances."""

from __future__ import annotations

from curvext.operations.flow import At, Inputs, Outputs, each, saved_dim, whole
from curvext.operations.operation import Operation
from curvext.samples import owners as own
from curvext.samples.owners import Owners


def _batched(at: At, out: Outputs) -> Inputs:
    """Matrices in the last two dimensions, each for itself: inputs and outputs have the same dimensions before them."""
    first = next(i for i, wanted in enumerate(at.inputs) if wanted)
    lead = len(at.shape(first)) - 2
    meeting: Owners | None = own.nobody(lead)
    for number, owners in enumerate(out):
        if owners is None or at.out_shape(number)[:lead] != at.shape(first)[:lead]:
            return [None] * len(at.inputs)
        mixed = own.along(owners, range(lead, owners.ndim))
        meeting = own.merged(meeting, None if mixed is None else mixed.reshape(mixed.shape[:lead]))

    def of(i: int) -> Owners | None:
        shape = at.shape(i)
        if meeting is None or shape[:lead] != at.shape(first)[:lead]:
            return None
        return meeting.reshape(meeting.shape + (1,) * (len(shape) - lead))

    return each(at, of)


def _cross(at: At, out: Outputs) -> Inputs:
    """Vectors along a dimension, broadcast to each other."""
    one = None if out[0] is None else own.along(out[0], saved_dim(at, out[0].ndim))
    return each(at, lambda i: own.summed_to(one, at.shape(i)))


def _cdist(at: At, out: Outputs) -> Inputs:
    """Distances [..., P, M] of rows [..., P, D] and [..., M, D]."""

    def of(i: int) -> Owners | None:
        one = own.along(out[0], (out[0].ndim - 1 - i,)) if out[0] is not None else None
        one = one if one is None or i == 0 else one.swapaxes(-1, -2)
        return own.summed_to(one, (*at.shape(i)[:-1], 1))

    return each(at, of)


# fmt: off
_BATCHED = [
    "CholeskyInverse", "CholeskySolve", "LinalgCholeskyEx", "LinalgDet", "LinalgEigh", "LinalgInvEx",
    "LinalgLuFactorEx", "LinalgMatrixExp", "LinalgQr", "LinalgSlogdet", "LinalgSolveEx",
    "LinalgSolveTriangular", "LinalgSvd",
]
# fmt: on

OPERATIONS = {
    **{f"{name}Backward0": Operation(flow=_batched) for name in _BATCHED},
    "CdistBackward0": Operation(flow=_cdist),
    "LinalgCrossBackward0": Operation(flow=_cross),
    "TraceBackward0": Operation(flow=whole),
}
