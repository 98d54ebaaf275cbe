"""How each operation carries tangents: from a node and the tangents of its inputs to those of its outputs.

Operations have a rule of three kinds:

* **written**, for what a network spends its time on: products, convolutions, norms, attention;
* **symmetric**: where ∂h/∂x is a symmetric matrix (anything elementwise of one input, softmax) the
  tangent is the node's own backward;
* **transposed**, for all others and wherever numbers are complex: the backward u ↦ (∂h/∂x)ᵀu of one node
  is linear in u, so its own backward is (∂h/∂x) ẋ. Exact wherever PyTorch has a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curvext.graph.autograd_graph import Graph
from curvext.operations import attention
from curvext.operations.closed_forms import normalised_slope

#: a node, the tangents of its inputs (None for zero), the shape of its output → the output's tangent
Rule = Callable[[Any, Sequence[Tensor | None], torch.Size], Tensor | None]


def has_rule(name: str) -> bool:
    """Whether nodes of this name have a written rule, or a symmetric one."""
    return name in RULES


def written_rule(graph: Graph, position: int) -> Callable[[Sequence[Tensor | None]], Tensor | None]:
    """The tangent of a node's output from those of its inputs, for a node with a written rule."""
    rule, node = RULES[graph.names[position]], graph.nodes[position]
    shape, dtype = graph.shape(position), graph.dtype(position)

    def tangent(inputs: Sequence[Tensor | None]) -> Tensor | None:
        found = rule(node, inputs, shape)
        # of mixed dtypes, as where a norm on CUDA keeps the statistics of bfloat16 in float32, comes the widest
        return None if found is None else found.to(dtype)

    return tangent


# ---------------------------------------------------------------------- the general rules


def transposed(node: Any, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The backward of a node's backward, by what it is linear in."""
    with torch.enable_grad():
        cotangents = [
            torch.zeros((), dtype=m.dtype, device=m.device).expand(tuple(m.shape)).requires_grad_()
            for m in node._input_metadata
        ]
        backward = node(*cotangents)
    backward = backward if isinstance(backward, tuple) else (backward,)
    pairs = [
        # the engine sums a gradient over what was broadcast, and casts it: here the other way round
        (b, _cast(t, b.dtype).expand(b.shape))
        for b, t in zip(backward, inputs, strict=False)
        if t is not None and b is not None and b.requires_grad
    ]
    if not pairs:
        return [None] * len(cotangents)
    return torch.autograd.grad(
        [b for b, _ in pairs], cotangents, [t for _, t in pairs], allow_unused=True
    )


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype; of a complex tensor the real part, where that is what is asked for."""
    return (t.real if t.is_complex() and not dtype.is_complex else t).to(dtype)


def _symmetric(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = h(x) with a symmetric Jacobian: the tangent is the node's own backward."""
    (t,) = (t for t in inputs if t is not None)
    product = node(t.to(node._input_metadata[0].dtype))
    return product[0] if isinstance(product, tuple) else product


def _total(parts: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """The sum of some tangents, each broadcast to the output."""
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total if total is None or total.shape == shape else total.expand(shape)


# ---------------------------------------------------------------------- products


def _addmm(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = β b + α A B."""
    bias, left, right = inputs
    alpha, beta = node._saved_alpha, node._saved_beta
    total: Tensor | None = None
    if bias is not None:
        total = (bias if beta == 1 else beta * bias).expand(shape)
    return _add_products(total, node, "mat1", "mat2", left, right, alpha)


def _mm(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = A B."""
    left, right = inputs
    return _add_products(None, node, "self", "mat2", left, right, 1)


def _add_products(
    total: Tensor | None,
    node: Any,
    first: str,
    second: str,
    left: Tensor | None,
    right: Tensor | None,
    alpha: float,
) -> Tensor | None:
    """total + α (Ȧ B + A Ḃ), each product added where it is computed."""
    factors = []
    if right is not None:
        factors.append((getattr(node, f"_saved_{first}"), right))
    if left is not None:
        factors.append((left, getattr(node, f"_saved_{second}")))
    fresh = False
    for a, b in factors:
        if total is None:
            total = a @ b if alpha == 1 else alpha * (a @ b)
        elif fresh:
            total.addmm_(a, b, alpha=alpha)
        else:
            total = torch.addmm(total, a, b, alpha=alpha)
        fresh = True
    return total


def _bmm(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = A B, batched."""
    left, right = inputs
    total = None if right is None else torch.bmm(node._saved_self, right)
    if left is None:
        return total
    other = node._saved_mat2
    return torch.bmm(left, other) if total is None else total.baddbmm_(left, other)


def _convolution(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x * W + b."""
    x, weight, bias = inputs
    how = (
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
        node._saved_groups,
    )
    total = None
    if weight is not None:
        total = torch.convolution(node._saved_input, weight, bias, *how)
    elif bias is not None:
        total = bias.view(-1, *[1] * (len(shape) - 2)).expand(shape)
    if x is None:
        return total
    moved = torch.convolution(x, node._saved_weight, None, *how)
    return moved if total is None else moved.add_(total)


def _embedding(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y_i = W[index_i]; the row of padding has no gradient."""
    (weight,) = (t for t in inputs if t is not None)
    index, skipped = node._saved_indices, node._saved_padding_idx
    tangent = F.embedding(index, weight)
    if skipped < 2**63:  # "none" is stored as -1 in an unsigned field
        tangent.masked_fill_((index == skipped).unsqueeze(-1), 0)
    return tangent


def _mul(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x z."""
    x, z = inputs if len(inputs) == 2 else (inputs[0], None)
    first = None if x is None else x * node._saved_other
    if z is None:
        return _total([first], shape)
    if first is None or first.shape != shape:
        return _total([first, node._saved_self * z], shape)
    return first.addcmul_(node._saved_self, z)


def _add(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x + α z."""
    x, z = inputs if len(inputs) == 2 else (inputs[0], None)
    return _total([x, _times(z, node._saved_alpha)], shape)


def _sub(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x − α z."""
    x, z = inputs if len(inputs) == 2 else (inputs[0], None)
    return _total([x, _times(z, -node._saved_alpha)], shape)


def _expand(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y is x, repeated."""
    return _total(inputs, shape)


def _times(t: Tensor | None, factor: float) -> Tensor | None:
    return t if t is None or factor == 1 else factor * t


# ---------------------------------------------------------------------- sums and normalisation


def _mean_of(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = mean(x) over some dimensions."""
    (t,) = (t for t in inputs if t is not None)
    return t.mean(_dims(node), node._saved_keepdim)


def _sum_of(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = Σ x over some dimensions."""
    (t,) = (t for t in inputs if t is not None)
    return t.sum(_dims(node), node._saved_keepdim)


def _dims(node: Any) -> list[int] | None:
    """Nodes keep negative dimensions in unsigned fields."""
    dims = node._saved_dim
    return None if dims is None else [d - 2**64 if d >= 2**63 else d for d in dims]


def _layer_norm(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = w x̂ + b."""
    saved, dims = node._saved_input, list(node._saved_normalized_shape)
    scale = getattr(node, "_saved_weight", None)
    return _normalised(inputs, saved, scale, node._saved_result1, node._saved_result2, dims, shape)


def _closed_form_layer_norm(
    node: Any, inputs: Sequence[Tensor | None], shape: torch.Size
) -> Tensor | None:
    """y = w x̂ + b by the function that second derivatives are taken of."""
    saved, scale, mean, rstd = node.saved_tensors
    return _normalised(inputs, saved, scale, mean, rstd, node.dims, shape)


def _normalised(
    inputs: Sequence[Tensor | None],
    saved: Tensor,
    scale: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dims: Sequence[int],
    shape: torch.Size,
) -> Tensor | None:
    x, weight, bias = _three(inputs)
    total: Tensor | None = None
    if weight is not None:
        # the norm with the tangents in place of weight and bias
        total = ((saved - mean) * rstd).mul_(weight)
        if bias is not None:
            total += bias
    elif bias is not None:
        total = bias.expand(shape)
    if x is None:
        return total
    if not x.is_cuda:
        # there statistics are always wider than bfloat16; here only beside wide weights
        x, saved = x.to(mean.dtype), saved.to(mean.dtype)
    moved = normalised_slope(x, saved, dims, mean, rstd)
    if scale is None:
        return _total([moved, total], shape)
    return moved.mul_(scale) if total is None else torch.addcmul(total, moved, scale)


def _batch_norm(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = w x̂ + b by channel, with running statistics; those of the batch go the general way."""
    if node._saved_running_mean is None or node._saved_training:
        return transposed(node, inputs)[0]
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    along = (-1, *[1] * (len(shape) - 2))
    rstd = (node._saved_running_var + eps).rsqrt()
    x, weight, bias = _three(inputs)
    total: Tensor | None = None
    if weight is not None:
        # each pass has one factor by channel, which is what PyTorch vectorises
        slope = rstd * weight
        shift = -node._saved_running_mean * slope
        total = node._saved_input * slope.view(along)
        total += (shift if bias is None else shift.add_(bias)).view(along)
    elif bias is not None:
        total = bias.view(along).expand(shape)
    if x is None:
        return total
    scale = (rstd if node._saved_weight is None else rstd * node._saved_weight).view(along)
    return x * scale if total is None else torch.addcmul(total, x, scale)


def _three(
    inputs: Sequence[Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of input, weight and bias, of which a node may lack the last."""
    first, second, third = (*inputs, None, None)[:3]
    return first, second, third


def _max_pool(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y picks entries of x."""
    (t,) = (t for t in inputs if t is not None)
    index = node._saved_result1
    spatial = len(node._saved_kernel_size)
    return t.flatten(-spatial).gather(-1, index.flatten(-spatial)).view(shape)


def _log_softmax(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x − log Σ eˣ."""
    (t,) = (t for t in inputs if t is not None)
    dim = node._saved_dim
    dim = dim - 2**64 if dim >= 2**63 else dim
    probability = node._saved_result.exp()
    return t - (probability * t).sum(dim, keepdim=True)


def _gelu(node: Any, inputs: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """y = x Φ(x) by the function that second derivatives are taken of."""
    (t,) = (t for t in inputs if t is not None)
    return torch.ops.aten.gelu_backward(t, *node.saved_tensors)


# ---------------------------------------------------------------------- attention


def _fused_attention(
    node: Any, inputs: Sequence[Tensor | None], shape: torch.Size
) -> Tensor | None:
    """y = P v by the fused kernel of the CPU."""
    qkv, scores = attention.of_node(node)
    dq, dk, dv = (*inputs, None, None, None)[:3]
    return attention.tangent(qkv, (dq, dk, dv), scores)


def _closed_form_attention(
    node: Any, inputs: Sequence[Tensor | None], shape: torch.Size
) -> Tensor | None:
    """y = P v by the function that second derivatives are taken of."""
    q, k, v = node.saved_tensors[:3]
    dq, dk, dv = (*inputs, None, None, None)[:3]
    return attention.tangent((q, k, v), (dq, dk, dv), node.scores)


# fmt: off
#: functions of one input, element by element
_ELEMENTWISE = [
    "Abs", "Acos", "Asin", "Atan", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Expm1", "Gelu",
    "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log10", "Log1P", "Log2",
    "LogSigmoid", "Mish", "Neg", "Pow", "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Silu", "Sin",
    "Sinh", "Softplus", "Softshrink", "Sqrt", "Tan", "Tanh", "Threshold",
]
# fmt: on

RULES: dict[str, Rule] = {
    **{f"{name}Backward0": _symmetric for name in _ELEMENTWISE},
    "SoftmaxBackward0": _symmetric,
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "BmmBackward0": _bmm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "MulBackward0": _mul,
    "AddBackward0": _add,
    "SubBackward0": _sub,
    "ExpandBackward0": _expand,
    "MeanBackward1": _mean_of,
    "SumBackward1": _sum_of,
    "NativeLayerNormBackward0": _layer_norm,
    "NativeBatchNormBackward0": _batch_norm,
    "CudnnBatchNormBackward0": _batch_norm,
    "MaxPool2DWithIndicesBackward0": _max_pool,
    "LogSoftmaxBackward0": _log_softmax,
    "ScaledDotProductFlashAttentionForCpuBackward0": _fused_attention,
    "_ClosedFormAttentionBackward": _closed_form_attention,
    "ClosedFormGeluBackward": _gelu,
    "ClosedFormLayerNormBackward": _closed_form_layer_norm,
}
