"""Shampoo's factors of every datum's gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.kronecker.blocks import Block, Factors, Place, SpectralBlock
from curvext.kronecker.collect import BlockOf, factored_blocks
from curvext.kronecker.forms import Form
from curvext.kronecker.kronecker_block import KroneckerBlock, grouped
from curvext.kronecker.live import COMMON, MAX_DIM, LiveBlocks
from curvext.kronecker.pairs import Pairs
from curvext.kronecker.spectral import Spectral, eigenbasis
from curvext.kronecker.sums import ShampooSum, sides_of
from curvext.kronecker.target import FISHERS, Target
from curvext.options import Options, spelled_out
from curvext.problem import Problem
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11


class ShampooOperator(LiveBlocks):
    """Shampoo's Kronecker product of the second moments of every datum's gradient (Gupta et al. 2018).

        L = Σ_vn G_vn G_vnᵀ,    R = Σ_vn G_vnᵀ G_vn,    B = L ⊗ R / tr L  ("trace")  or  L^½ ⊗ R^½  ("root")

    "trace" has the trace of M and is the square of the optimizer's preconditioner (Morwani et al. 2024); "root" is the
    bound of M by Gupta et al. G_vn is one datum's gradient: the optimizer of this name squares a mini-batch's mean
    gradient instead, which does not estimate these.

    Args:
        model, loss, data, params, cache, kind, samples, seed, bias, max_dim, options: see
            :class:`curvext.KFACOperator`.
        form: "trace" or "root".

    Raises:
        ValueError: an argument does not fit, or the loss has no likelihood for "exact" and "mc".

    Cost:
        One pass without weight gradients for each vector v, and two products for each side.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> S = cx.ShampooOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)), kind="exact")
        >>> torch.allclose(S.factors["weight"].a, torch.eye(2))
        True
    """

    own = (*COMMON, "form", "bias")

    @spelled_out
    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        *,
        kind: str = "mc",
        samples: int = 1,
        seed: int = 0,
        form: str = "trace",
        bias: str = "joint",
        max_dim: int = MAX_DIM,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            model,
            loss,
            data,
            params,
            cache,
            kind=kind,
            samples=samples,
            seed=seed,
            form=form,
            bias=bias,
            max_dim=max_dim,
            **options,
        )

    def _choose(self, *, form: str = "trace", bias: str = "joint", **common: Any) -> None:
        self._choose_matrix(FISHERS, **common)
        self._form = self._choice("form", form, ("trace", "root"))
        self._bias = self._choice("bias", bias, ("joint", "separate"))

    def _key(self) -> Hashable:
        return (ShampooOperator, self._target, self._form, self._bias, self._max_dim)

    def _make(self) -> list[Block]:
        block_of = _by_trace if self._form == "trace" else _by_roots
        joint = self._bias == "joint"
        return shampoo_factors(self._problem, self._target, joint, self._max_dim, block_of)


def shampoo_factors(
    problem: Problem,
    target: Target,
    joint: bool,
    max_dim: int,
    block_of: BlockOf,
    record: bool = False,
) -> list[Block]:
    """The block that ``block_of`` makes of each weight's R and L, and exact blocks."""

    def sum_of(pairs: Pairs, form: Form) -> ShampooSum:
        return ShampooSum(sides_of(pairs, form.fan_out, form.fan_in, max_dim, one_hot=False))

    return factored_blocks(problem, target, joint, max_dim, sum_of, block_of, record)


def _by_trace(place: Place, form: Form, factors: Factors) -> Block:
    left = grouped(factors.g, form.groups)
    trace = left.diagonal(dim1=1, dim2=2).sum(1) if left.ndim == 3 else left.sum(1)
    return KroneckerBlock(place, form, factors, "a weight: L ⊗ R / tr L", divisor=trace)


def _by_roots(place: Place, form: Form, factors: Factors) -> Block:
    assert factors.a is not None
    left, right = grouped(factors.g, form.groups), grouped(factors.a, form.groups)
    out_values, out = eigenbasis(left, left.ndim == 3)
    in_values, inner = eigenbasis(right, right.ndim == 3)
    values = _root(out_values).unsqueeze(2) * _root(in_values).unsqueeze(1)
    spectral = Spectral(out, inner, values)
    return SpectralBlock(place, form, factors, spectral, "kronecker", "a weight: L^½ ⊗ R^½")


def _root(values: Tensor) -> Tensor:
    """Roots of a side's eigenvalues; what rounding left of a zero one would be the root of ε and not ε."""
    rounding = values.shape[1] * torch.finfo(values.dtype).eps * values.amax(1, keepdim=True)
    return torch.where(values > rounding, values, 0).sqrt()
