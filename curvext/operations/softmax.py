"""Softmax and its logarithm, along one dimension."""

from __future__ import annotations

from torch import Tensor

from curvext.operations.flow import local, saved_dim
from curvext.operations.node import Node, signed, symmetric
from curvext.operations.operation import Operation


def _log_softmax(node: Node, x: Tensor) -> Tensor:
    """ẏ of y = x − log Σ eˣ."""
    probability = node.saved.result.exp()
    return x - (probability * x).sum(signed(node.saved.dim), keepdim=True)


_ALONG_DIM = local(saved_dim)

OPERATIONS = {
    "LogSoftmaxBackward0": Operation(tangent=_log_softmax, flow=_ALONG_DIM),
    "SafeSoftmaxBackward0": Operation(flow=_ALONG_DIM),
    "SoftmaxBackward0": Operation(tangent=symmetric, flow=_ALONG_DIM),
}
