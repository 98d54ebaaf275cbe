"""Look-ups of rows in a table."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from curvext.gradients.rows import RowsGradient
from curvext.gradients.structured import StructuredGradient
from curvext.operations.flow import At, Inputs, Outputs, constant
from curvext.operations.node import Node, Saved, signed
from curvext.operations.operation import Operation, OutputGradient
from curvext.samples import owners as own


def _table(at: OutputGradient) -> StructuredGradient | None:
    indices, skipped = at.saved.indices, signed(at.saved.padding_idx)
    if at.layout.dim >= indices.ndim or at.saved.scale_grad_by_freq:
        return None
    index = at.by_sample(indices).reshape(at.samples, -1)
    rows = at.by_sample(at.g).reshape(at.samples, -1, at.g.shape[-1])
    if skipped < 0:
        return RowsGradient(index, rows, at.shape)
    present = index != skipped
    return RowsGradient(index, rows * present.unsqueeze(2), at.shape, present)


def _tangent(node: Node, table: Tensor) -> Tensor:
    """y_i = W[index_i]; the row of padding has no gradient."""
    index, skipped = node.saved.indices, signed(node.saved.padding_idx)
    tangent = F.embedding(index, table)
    if skipped >= 0:
        tangent.masked_fill_((index == skipped).unsqueeze(-1), 0)
    return tangent


def _flow(at: At, out: Outputs) -> Inputs:
    """Rows of a table, by their numbers; that of a parameter is read by all."""
    if at.is_parameter(0) or out[0] is None or out[0].shape[-1] != 1:
        return [constant(at, 0, out)]
    rows = at.shape(0)[0]
    found = own.gathered_from(out[0][..., 0], at.values("indices"), (rows,))
    return [None if found is None else found[:, None]]


def _is_sparse(saved: Saved) -> bool:
    return bool(saved.sparse)


OPERATIONS = {
    "EmbeddingBackward0": Operation(
        per_sample={0: _table},
        tangent=_tangent,
        flow=_flow,
        multilinear=True,
        look_up=True,
        sparse=_is_sparse,
    ),
    "EmbeddingBagBackward0": Operation(
        sparse=_is_sparse,
        refusal="EmbeddingBag has no second derivative in PyTorch; freeze it with params=, or use "
        "nn.Embedding followed by sum or mean. (First-order quantities such as "
        "fisher_diagonal(kind='empirical') work.)",
    ),
}
