"""EKFAC: a Kronecker eigenbasis and the exact diagonal in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from curvext.kronecker.blocks import Block, SpectralBlock
from curvext.kronecker.collect import with_eigenvalues
from curvext.kronecker.kfac import KFACOperator
from curvext.kronecker.kronecker_block import KroneckerBlock
from curvext.kronecker.live import MAX_DIM, KeptNow, LiveBlocks
from curvext.kronecker.shampoo import shampoo_factors
from curvext.kronecker.sums import EigenvalueSum
from curvext.options import Options, spelled_out
from curvext.processes import Saying
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11


class EKFACOperator(KFACOperator):
    """EKFAC: the Kronecker eigenbasis with the exact diagonal of M in it (George et al. 2018).

        B = (Q_Γ ⊗ Q_A) diag Λ (Q_Γ ⊗ Q_A)ᵀ,    Λ = Σ_vn (Q_Γᵀ G_vn Q_A)²,    G_vn = Σ_s g_vns a_nsᵀ

    No matrix that is diagonal in this basis is nearer to M's block, so it is never farther than :class:`KFACOperator`,
    and tr B = tr M. Λ is made from rotated pairs by the kernel ``outer_square``; no G_vn is formed.

    Args:
        basis: whose eigenvectors Q are: "kfac", those of Γ and A; "shampoo", those of L = Σ G Gᵀ and R = Σ Gᵀ G, which
            was nearer to M's block in every case measured.
        model, loss, data, params, cache, kind, samples, seed, approx, bias, positions, max_dim, options: see
            :class:`KFACOperator`. ``approx`` and ``positions`` enter the basis alone.

    Raises:
        ValueError: an argument does not fit, or the loss has no likelihood for "exact" and "mc".

    Cost:
        The factors, their eigendecompositions, and a second pass with ``outer_square``.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
        >>> data = (torch.eye(2), torch.tensor([0, 1]))
        >>> risk = cx.EmpiricalRisk(model, loss, data)
        >>> torch.allclose(risk.ekfac(kind="exact").trace(), risk.fisher().trace())
        True
    """

    by_sides = False
    own = (*KFACOperator.own, "basis")

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
        approx: str = "expand",
        bias: str = "joint",
        positions: str = "reached",
        max_dim: int = MAX_DIM,
        basis: str = "kfac",
        **options: Unpack[Options],
    ) -> None:
        LiveBlocks.__init__(
            self,
            model,
            loss,
            data,
            params,
            cache,
            kind=kind,
            samples=samples,
            seed=seed,
            approx=approx,
            bias=bias,
            positions=positions,
            max_dim=max_dim,
            basis=basis,
            **options,
        )

    def _choose(self, *, basis: str = "kfac", **options: Any) -> None:
        super()._choose(**options)
        self._basis = self._choice("basis", basis, ("kfac", "shampoo"))

    def _key(self) -> Hashable:
        return (EKFACOperator, self._basis, super()._key())

    def _make(self) -> list[Block]:
        problem, target, max_dim = self._problem, self._target, self._max_dim
        joint = self._bias == "joint"
        if self._basis == "kfac":
            key = super()._key()
            kept = problem.derived(
                key, lambda: KeptNow(self._factored(record=True)), Saying(f"factors, {key}")
            )
            factored = kept.blocks
        else:
            factored = shampoo_factors(
                problem, target, joint, max_dim, partial(KroneckerBlock), record=True
            )
        return with_eigenvalues(
            problem, target, factored, _by_eigenvalues, complete=self._approx == "reduce"
        )


def _by_eigenvalues(block: Block, values: EigenvalueSum, scale: float) -> Block:
    why = "a weight: the exact diagonal in the eigenbasis of its factors"
    return SpectralBlock(
        block.place, block.form, block.factors, values.spectral(scale), "kronecker", why
    )
