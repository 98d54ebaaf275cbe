"""Nodes of PyTorch's graph as the rules of operations read them; nothing else reads what a node saved.

PyTorch names what a node saved for its backward pass (``_saved_mat1``), and promises no names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def saved(node: Any, name: str) -> Any:
    """The value that a node saved under a name; an AttributeError if there is none."""
    return getattr(node, "_saved_" + name)


class Saved:
    """The values that a node saved for its backward pass: ``saved.mat1`` is ``node._saved_mat1``."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._node, "_saved_" + name)
        if isinstance(value, (int, float)):
            setattr(
                self, name, value
            )  # numbers stay, so they are read once; tensors may be freed or written to
        return value


class DetachedSaved(Saved):
    """The same, with tensors cut off from the graph."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._node, "_saved_" + name)
        return value.detach() if isinstance(value, Tensor) else value


class Node:
    """A node with the shape and dtype of its operation's output.

    Args:
        raw: the node of PyTorch's graph. Called with the gradients of its outputs it gives those of its inputs.
        which: number of the output that is meant.
    """

    def __init__(self, raw: Any, which: int = 0) -> None:
        metadata = raw._input_metadata[which]
        self.raw = raw
        self.saved = Saved(raw)
        self.which = which
        #: of output ``which``
        self.shape = torch.Size(metadata.shape)
        self.dtype: torch.dtype = metadata.dtype


# ---------------------------------------------------------------------- dimensions


def signed(value: int) -> int:
    """A signed number from the unsigned field of a node."""
    return value - 2**64 if value >= 2**63 else value


def dimension(value: int, size: int) -> int:
    """A dimension of ``size``, or an index below it, counted from the front."""
    value = signed(value)
    return value + size if value < 0 else value


def dimensions(value: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Dimensions as saved; None, or an empty list, stands for all."""
    if value is None or value == ():
        return list(range(ndim))
    several = (value,) if isinstance(value, int) else value
    return [dimension(d, ndim) for d in several]


# ---------------------------------------------------------------------- tangents of any operation


def transposed(node: Any, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The tangents of a node's outputs as the backward pass of its backward pass u ↦ (∂h/∂x)ᵀ u, linear in u.

    Exact wherever PyTorch has a second derivative.
    """
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


def symmetric(node: Node, *inputs: Tensor | None) -> Tensor | None:
    """ẏ of y = h(x) with a symmetric Jacobian, as of anything element by element: the node's own backward."""
    (t,) = (t for t in inputs if t is not None)
    product = node.raw(t.to(node.dtype))
    return product[0] if isinstance(product, tuple) else product


def total(parts: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """The sum of some tangents, each broadcast to the output."""
    found: Tensor | None = None
    for part in parts:
        if part is not None:
            found = part if found is None else found + part
    return found if found is None or found.shape == shape else found.expand(shape)
