"""Operations on images: pools, resizing, padding by what is there, windows and grids."""

from __future__ import annotations

from torch import Tensor

from curvext.operations.flow import At, DimsOf, Inputs, Outputs, each, local
from curvext.operations.node import Node
from curvext.operations.operation import Operation
from curvext.samples import owners as own


def _max_pool(node: Node, x: Tensor) -> Tensor:
    """y picks entries of x."""
    index, spatial = node.saved.result1, len(node.saved.kernel_size)
    return x.flatten(-spatial).gather(-1, index.flatten(-spatial)).view(node.shape)


def _last(count: int) -> DimsOf:
    return lambda at, ndim: range(max(0, ndim - count), ndim)


def _images(at: At, out: Outputs) -> Inputs:
    """Samples in the first dimension of all tensors, each for itself: images, grids, windows."""
    if out[0] is None or any(
        len(at.shape(i)) == 0 or at.shape(i)[0] != at.out_shape()[0]
        for i, wanted in enumerate(at.inputs)
        if wanted
    ):
        return [None] * len(at.inputs)
    one = own.along(out[0], range(1, out[0].ndim))
    return each(
        at, lambda i: None if one is None else one.reshape(-1, *(1,) * (len(at.shape(i)) - 1))
    )


# fmt: off
#: by the number of their last dimensions that are mixed
_POOLS = {
    1: [
        "ReflectionPad1D", "ReplicationPad1D", "UpsampleLinear1D", "UpsampleNearest1D", "UpsampleNearestExact1D",
    ],
    2: [
        "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "AvgPool2D", "FractionalMaxPool2D", "MaxPool2D",
        "MaxUnpool2D", "ReflectionPad2D", "ReplicationPad2D", "UpsampleBicubic2D",
        "UpsampleBicubic2DAa", "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleNearest2D",
        "UpsampleNearestExact2D",
    ],
    3: [
        "AdaptiveAvgPool3D", "AdaptiveMaxPool3D", "AvgPool3D", "FractionalMaxPool3D", "MaxPool3DWithIndices",
        "MaxUnpool3D", "PixelShuffle", "PixelUnshuffle", "ReflectionPad3D", "ReplicationPad3D",
        "UpsampleNearest3D", "UpsampleNearestExact3D", "UpsampleTrilinear3D",
    ],
}
# fmt: on

OPERATIONS = {
    **{
        f"{name}Backward0": Operation(flow=local(_last(count)))
        for count, names in _POOLS.items()
        for name in names
    },
    "MaxPool2DWithIndicesBackward0": Operation(tangent=_max_pool, flow=local(_last(2))),
    **{
        f"{name}Backward0": Operation(flow=_images)
        for name in ("Col2Im", "GridSampler2D", "GridSampler3D", "Im2Col")
    },
}
