"""Ways around operations whose derivative PyTorch lacks, has wrong, or has at many times its cost.

A detour is found by the name of a node in the graph of a first forward pass, which is then run again in
a context that takes an equivalent way; nothing is slowed down where such a node does not occur.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvext.operations.attention_in_closed_form import attention_in_closed_form
from curvext.operations.gelu import gelu_in_closed_form
from curvext.operations.layer_norm import layer_norm_in_closed_form
from curvext.torch_internals.switches import with_math_attention, without_cudnn, without_mkldnn

#: what a graph is made for: backward passes alone, tangents as well, to be differentiated twice, or that in a trace
GraphUse = Literal["backward", "linearised", "twice", "traced"]


@dataclass(frozen=True)
class Detour:
    """A context for the forward pass, and the uses of the graph that need it."""

    taken: Callable[[], AbstractContextManager[object]]
    needed_for: Collection[GraphUse]


def needed(names: Collection[str], use: GraphUse) -> set[str]:
    """Those of some node names that have a detour for this use."""
    return {n for n in names if n in DETOURS and use in DETOURS[n].needed_for}


# ---------------------------------------------------------------------- wrong second derivatives


class _ComposedWeightNorm(torch.overrides.TorchFunctionMode):
    """``torch._weight_norm`` from elementary operations: the fused one has a wrong second derivative."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch._weight_norm:
            direction, magnitude, *rest = args
            dim = (kwargs or {}).get("dim", rest[0] if rest else 0)
            others = (
                [d for d in range(direction.ndim) if d != dim % direction.ndim]
                if dim != -1
                else None
            )
            norm = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
            return direction * (magnitude / norm)
        return func(*args, **(kwargs or {}))


class _ComposedLogcumsumexp(torch.overrides.TorchFunctionMode):
    """``logcumsumexp`` from elementary operations: PyTorch differentiates its backward pass by logarithms of 0."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.logcumsumexp, Tensor.logcumsumexp):
            composed = _logcumsumexp(*args, **(kwargs or {}))
            if composed is not None:
                return composed
        return func(*args, **(kwargs or {}))


def _logcumsumexp(input: Tensor, dim: int, *, out: Tensor | None = None) -> Tensor | None:
    """y_i = log Σ_{j ≤ i} exp x_j, the sums of 2, 4, 8 … neighbours joined; None where that is not defined."""
    if out is not None or input.ndim == 0 or not input.is_floating_point():
        return None
    y, step = input.movedim(dim, 0), 1
    while step < len(y):
        earlier, later = y[:-step], y[step:]
        # log(e^a + e^b) = b + softplus(a − b), whose derivatives do not overflow
        joined = later + torch.nn.functional.softplus(earlier - later, threshold=50)
        y, step = torch.cat([y[:step], joined]), 2 * step
    return y.movedim(0, dim)


class _ComposedHardsigmoid(torch.overrides.TorchFunctionMode):
    """``hardsigmoid`` by ``hardtanh``: PyTorch has no second derivative of it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.nn.functional.hardsigmoid, torch._C._nn.hardsigmoid):
            x = args[0] if args else (kwargs or {})["input"]
            return (torch.nn.functional.hardtanh(x, -3.0, 3.0) + 3.0) / 6.0
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------- attention


@contextmanager
def _composed_attention() -> Iterator[None]:
    """In closed form where a mode sees the call, and elsewhere of elementary operations."""
    with with_math_attention(), attention_in_closed_form():
        yield


@contextmanager
def twice_differentiable(names: Collection[str]) -> Iterator[None]:
    """Attention, recurrence and weight norm by operations of PyTorch's that it differentiates twice, and rightly.

    Args:
        names: those of RECURRENT that a first forward pass met: without their backends convolutions are slow.
    """
    with ExitStack() as stack:
        stack.enter_context(with_math_attention())
        stack.enter_context(_ComposedWeightNorm())
        for name in names:
            stack.enter_context(DETOURS[name].taken())
        yield


#: in place of a name: the attention of the CPU in a graph whose tangents are had by differentiating it twice
ATTENTION_BESIDE_PYTHON = (
    "ScaledDotProductFlashAttentionForCpuBackward0 beside a function written in Python"
)

#: nodes of fused recurrent layers
RECURRENT = {"MkldnnRnnLayerBackward0", "CudnnRnnBackward0"}

_FORWARD_TOO: tuple[GraphUse, ...] = ("linearised", "twice")
_ALL_ORDERS: tuple[GraphUse, ...] = (*_FORWARD_TOO, "traced")
_TWICE: tuple[GraphUse, ...] = ("twice",)
_LINEARISED: tuple[GraphUse, ...] = ("linearised",)

DETOURS: dict[str, Detour] = {
    # unrolled, each step of a recurrent layer is an ordinary product with its weights
    "MkldnnRnnLayerBackward0": Detour(without_mkldnn, ("backward", *_ALL_ORDERS)),
    "CudnnRnnBackward0": Detour(without_cudnn, ("backward", *_ALL_ORDERS)),
    "WeightNormInterfaceBackward0": Detour(_ComposedWeightNorm, _ALL_ORDERS),
    "HardsigmoidBackward0": Detour(_ComposedHardsigmoid, ("twice", "traced")),
    "LogcumsumexpBackward0": Detour(_ComposedLogcumsumexp, _ALL_ORDERS),
    # fused attention has no second derivative; of its tangents only the CPU kernel's is known
    "ScaledDotProductFlashAttentionForCpuBackward0": Detour(_composed_attention, _TWICE),
    ATTENTION_BESIDE_PYTHON: Detour(_composed_attention, _LINEARISED),
    "ScaledDotProductFlashAttentionBackward0": Detour(_composed_attention, _FORWARD_TOO),
    "ScaledDotProductEfficientAttentionBackward0": Detour(_composed_attention, _FORWARD_TOO),
    "ScaledDotProductCudnnAttentionBackward0": Detour(_composed_attention, _FORWARD_TOO),
    # slow second derivatives
    "GeluBackward0": Detour(gelu_in_closed_form, _TWICE),
    "NativeLayerNormBackward0": Detour(layer_norm_in_closed_form, _TWICE),
}
