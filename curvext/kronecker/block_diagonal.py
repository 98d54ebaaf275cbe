"""The exact diagonal blocks of a curvature matrix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.gradients.structured import StructuredGradient
from curvext.kronecker.blocks import Block, DenseBlock, DiagonalBlock
from curvext.kronecker.collect import exact_block, place_of
from curvext.kronecker.exact import ExactSum
from curvext.kronecker.live import COMMON, MAX_DIM, LiveBlocks
from curvext.kronecker.spectral import symmetric
from curvext.kronecker.target import FISHERS
from curvext.operations.view_chain import ViewChain
from curvext.operators.hessian import HessianOperator
from curvext.options import Options, spelled_out
from curvext.per_sample.partners import Wiring
from curvext.space import ParameterSpace, Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11

#: products with the Hessian that share a pass
_COLUMNS = 64


class BlockDiagonalOperator(LiveBlocks):
    """The exact diagonal blocks of H, G or a Fisher matrix, zero elsewhere.

    ``blocks`` chooses the entries to keep, which equal M's up to rounding. The result is not M: the blocks between
    parameters are left out, and can be as large as those within.

    Args:
        model, loss, data, params, cache, options: see :class:`curvext.EmpiricalRisk`.
        kind: which matrix: "exact" (F, which is G), "mc" (F with drawn labels), "empirical" (F_emp), "ggn" (G, also
            for a loss without a likelihood) or "hessian".
        samples, seed: of the labels of "mc", the very draws of ``mc_fisher(samples, seed)``.
        blocks: "parameter": one for each; "module": one for all parameters of a module's own; or lists of names, each
            of the chosen parameters in one of them.
        max_dim: a larger block keeps its exact diagonal.

    Raises:
        ValueError: an argument does not fit, or the loss has no likelihood for "exact" and "mc".

    Cost:
        One pass for each vector of M, in which N gradients by a block are in memory at a time; for "hessian" P
        products.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1), torch.nn.MSELoss()
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> D = cx.BlockDiagonalOperator(model, loss, data, kind="hessian")
        >>> D.to_dense()  # without the block between weight and bias
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 2.]])
    """

    own = (*COMMON, "blocks")

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
        blocks: str | Iterable[Iterable[str]] = "parameter",
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
            blocks=blocks,
            max_dim=max_dim,
            **options,
        )

    def _choose(
        self, *, blocks: str | Iterable[Iterable[str]] = "parameter", **common: Any
    ) -> None:
        self._choose_matrix((*FISHERS, "ggn", "hessian"), **common)
        self._members = _members(self.space, blocks)

    def _key(self) -> Hashable:
        return (BlockDiagonalOperator, self._target, self._members, self._max_dim)

    def _make(self) -> list[Block]:
        if self._target.kind == "hessian":
            return [self._of_hessian(members) for members in self._members]
        with self._problem.call(self._target.saying("blocks")) as rounds:
            for _ in rounds:
                exact = ExactSum(self.space, self._max_dim)
                for members in self._members:
                    exact.expect(members)
                self._target.visit(self._problem, _Exact(exact))
        if not self.group.alone:
            exact.add_over(self.group, self._members)
        scale = self._target.scale(self._problem)
        return [
            exact_block(self._problem, exact, members, scale, self._target, _WHY)
            for members in self._members
        ]

    def _of_hessian(self, members: tuple[int, ...]) -> Block:
        hessian = HessianOperator.of(self._problem)
        place = place_of(self._problem, members)
        index = torch.cat([torch.arange(s.start, s.stop, device=self.device) for s in place.slices])
        dense = place.size <= self._max_dim
        dtype = dtype_of_sums(self.dtype)
        parts = []
        for start in range(0, place.size, _COLUMNS):
            here = index[start : start + _COLUMNS]
            columns = torch.arange(len(here), device=self.device)
            units = torch.zeros(self.size, len(here), dtype=self.dtype, device=self.device)
            units[here, columns] = 1
            products = (hessian @ units).to(dtype)
            parts.append(products[index] if dense else products[here, columns])
        if not dense:
            return DiagonalBlock(place, torch.cat(parts), _OVER)
        matrix = torch.cat(parts, 1)
        return DenseBlock(place, symmetric((matrix + matrix.T) / 2), False, _WHY)


_WHY = "exact"
_OVER = "the diagonal of its exact block, which is over max_dim"


class _Exact:
    """A consumer that adds up exact blocks."""

    def __init__(self, exact: ExactSum) -> None:
        self._exact = exact

    def meet(self, wiring: Wiring) -> None:
        pass

    def begin(self, samples: int, sign: float, last: bool) -> None:
        self._exact.begin(samples, sign)

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        self._exact.use(parameter, use, arrange)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        self._exact.gradient(parameter, sample, gradient)

    def end(self) -> None:
        self._exact.end()


def _members(
    space: ParameterSpace, blocks: str | Iterable[Iterable[str]]
) -> tuple[tuple[int, ...], ...]:
    """The parameters of each block by number, in the order of the flat vector."""
    names = list(space.names)
    if blocks == "parameter":
        return tuple((p,) for p in range(len(names)))
    if blocks == "module":
        by_module: dict[str, list[int]] = {}
        for p, name in enumerate(names):
            by_module.setdefault(name.rpartition(".")[0], []).append(p)
        return tuple(tuple(members) for members in by_module.values())
    wanted = "BlockDiagonalOperator: blocks: expected 'parameter', 'module' or lists of names, got "
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise ValueError(f"{wanted}{blocks!r}")
    groups = [[group] if isinstance(group, str) else group for group in blocks]
    if not all(isinstance(group, Iterable) for group in groups):
        raise ValueError(f"{wanted}{groups!r}")
    lists = [list(group) for group in groups]
    flat = [name for group in lists for name in group]
    unknown = [name for name in flat if name not in names]
    missing = [name for name in names if name not in flat]
    twice = sorted({str(name) for name in flat if flat.count(name) > 1})
    if unknown or missing or twice or not all(lists):
        raise ValueError(
            "BlockDiagonalOperator: blocks: expected every chosen parameter in one list: "
            f"unknown {unknown[:5]}, missing {missing[:5]}, twice {twice[:5]}, empty lists {lists.count([])}; params= "
            "chooses parameters"
        )
    numbers = [tuple(sorted(names.index(name) for name in group)) for group in lists]
    return tuple(sorted(numbers))
