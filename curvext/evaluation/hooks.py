"""Hooks on tensors edit gradients, so the results of backward passes are compared with those of a Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

HAS_NO_SECOND_DERIVATIVE = (
    "the forward pass puts hooks on tensors (register_hook), which edit the gradient here: what they compute has no "
    "second derivative that PyTorch sees. H and R need one; G, F_emp and the gradient do without. Remove the hook, or "
    "write what it computes as the backward of a torch.autograd.Function that can be differentiated"
)
_NOT_LINEAR = (
    "the forward pass puts hooks on tensors (register_hook) which are not linear in the gradient (clipping, "
    "normalising, noise): no matrix J stands behind them, so there is no curvature of this model. Remove them"
)


def check_linear(
    pulled: Callable[[Tensor], Sequence[Tensor | None]], u: Tensor, found: Sequence[Tensor]
) -> None:
    """Raises a RuntimeError unless Jᵀ of a multiple of u is the multiple of Jᵀ u, which ``found`` is."""
    for factor in (2.0**-10, 2.0**10):
        for scaled, plain in zip(pulled(u * factor), found, strict=True):
            other = torch.zeros_like(plain) if scaled is None else scaled / factor
            if not _close(other, plain):
                raise RuntimeError(f"model: {_NOT_LINEAR}")


def check_adjoint(v: Sequence[Tensor], moved: Tensor, u: Tensor, pulled: Sequence[Tensor]) -> None:
    """Raises a RuntimeError unless ⟨u, J v⟩ = ⟨Jᵀ u, v⟩."""
    left = float((u.double() * moved.double()).sum())
    parts = [float((p.double() * b.double()).sum()) for p, b in zip(pulled, v, strict=True)]
    size = float(u.double().norm() * moved.double().norm()) + sum(map(abs, parts))
    if not abs(left - sum(parts)) <= torch.finfo(u.dtype).eps ** 0.5 * size:
        raise RuntimeError(f"model: {_NOT_LINEAR}")


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two gradients are equal up to rounding."""
    return all(_close(x, y) for x, y in zip(a, b, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    size = float(b.abs().max()) if b.numel() else 0.0
    return not b.numel() or bool((a - b).abs().max() <= 1e4 * torch.finfo(b.dtype).eps * size)
