"""K-FAC: Kronecker factors of input and gradient second moments."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from curvext.kronecker.blocks import Block, Factors, Place
from curvext.kronecker.collect import factored_blocks
from curvext.kronecker.forms import Form
from curvext.kronecker.kronecker_block import KroneckerBlock
from curvext.kronecker.live import COMMON, MAX_DIM, LiveBlocks
from curvext.kronecker.pairs import Pairs
from curvext.kronecker.sums import KFACSum, sides_of
from curvext.kronecker.target import FISHERS, Target
from curvext.options import Options, spelled_out
from curvext.problem import Problem
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11


class KFACOperator(LiveBlocks):
    """K-FAC: the blocks of a Fisher matrix, that of a weight by Γ ⊗ A (Martens & Grosse 2015).

        "expand":  A = (1/R) Σ_ns a_ns a_nsᵀ,   Γ = Σ_vns g_vns g_vnsᵀ
        "reduce":  A = (1/N') Σ_n ā_n ā_nᵀ,     Γ = Σ_vn g̃_vn g̃_vnᵀ

    with a the input of the weight at a position, g the gradient at its output along vector v, which carries the scale
    of M, ā the mean and g̃ the sum over the positions of a datum (Eschenhagen et al. 2023). Parameters that are no
    matrix in a product (norm scales, biases of their own, a table that is also a head) have their exact block.

    It is M's block itself for a linear network with squared error, for the last layer of any network with squared
    error, and for one datum at one position. Elsewhere it is an approximation, and no bound on M. Adding λ to each of
    Γ and A does not give the inverse of B + λI; see ``inverse``.

    Args:
        model, loss, data, params, cache, options: see :class:`curvext.EmpiricalRisk`.
        kind: which M: "exact" (F, which is G), "mc" (F with drawn labels), "empirical" (F_emp).
        samples, seed: of the labels of "mc", the very draws of ``mc_fisher(samples, seed)``.
        approx: "expand" or "reduce".
        bias: "joint": a bias that is used with its weight alone makes one block with it, a extended by 1;
            "separate": it has its exact block.
        positions: "reached": a position that no gradient reaches (padding, an ignored label) is none and counts
            nowhere; "all": every position counts, as in the papers.
        max_dim: no symmetric matrix larger than this is formed; a longer side keeps the diagonal of its factor, a
            larger exact block its diagonal.

    Raises:
        ValueError: an argument does not fit, or the loss has no likelihood for "exact" and "mc".

    Cost:
        One pass without weight gradients for each vector v, and a symmetric product for each factor.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> K = cx.KFACOperator(model, loss, data, kind="exact")
        >>> G = cx.GGNOperator(model, loss, data)  # a linear network with squared error: G itself
        >>> torch.allclose(K.to_dense(), G.to_dense())
        True
    """

    by_sides = True
    own: tuple[str, ...] = (*COMMON, "approx", "bias", "positions")

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
            approx=approx,
            bias=bias,
            positions=positions,
            max_dim=max_dim,
            **options,
        )

    def _choose(
        self,
        *,
        approx: str = "expand",
        bias: str = "joint",
        positions: str = "reached",
        **common: Any,
    ) -> None:
        self._choose_matrix(FISHERS, **common)
        self._approx = self._choice("approx", approx, ("expand", "reduce"))
        self._bias = self._choice("bias", bias, ("joint", "separate"))
        self._positions = self._choice("positions", positions, ("reached", "all"))

    def _key(self) -> Hashable:
        return (
            KFACOperator,
            self._target,
            self._approx,
            self._bias,
            self._positions,
            self._max_dim,
        )

    def _make(self) -> list[Block]:
        return self._factored(record=False)

    def _factored(self, record: bool) -> list[Block]:
        return kfac_factors(
            self._problem,
            self._target,
            self._approx == "reduce",
            self._bias == "joint",
            self._positions == "all",
            self._max_dim,
            record,
        )


def kfac_factors(
    problem: Problem,
    target: Target,
    reduce: bool,
    joint: bool,
    every: bool,
    max_dim: int,
    record: bool,
) -> list[Block]:
    """Γ ⊗ A of each weight, and exact blocks."""

    def sum_of(pairs: Pairs, form: Form) -> KFACSum:
        sides = sides_of(pairs, form.fan_out, form.fan_in, max_dim, one_hot=not reduce)
        return KFACSum(sides, reduce, every, problem.group.alone)

    def block_of(place: Place, form: Form, factors: Factors) -> Block:
        return KroneckerBlock(place, form, factors, "a weight: Γ ⊗ A")

    return factored_blocks(problem, target, joint, max_dim, sum_of, block_of, record)
