"""What the curvature operators share: a problem, and one pass over its batches for all columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.dtypes import dtype_of_sums
from curvext.operators.linear import LinearOperator
from curvext.options import Options, spelled_out
from curvext.problem import Pass, Problem
from curvext.processes import Group, Saying
from curvext.products.linearisation import Linearisation
from curvext.space import ParameterSpace, Selection

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # those of typing need Python 3.11

Blocks = list[Tensor]  # a vector as one tensor per parameter
#: vectors of at most so many entries may exist twice, where that saves an operation for each parameter
_SMALL = 1 << 20


class CurvatureOperator(LinearOperator):
    """A curvature matrix of an empirical risk.

    Args:
        model: any ``nn.Module``, in a mode in which its output is a function of the parameters.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss``,
            ``curvext.CausalLMLoss``, or any callable ``(output, target) -> scalar``.
        data: one batch, or a re-iterable of batches.
        params: None for all that require grad; names, glob patterns or a predicate.
        cache: "auto" keeps linearisations while half of the free memory lasts; True, False, or bytes.
        forward, target, reduction, check_finite, compile, dtype, process_group: see
            :class:`curvext.EmpiricalRisk`.
    """

    #: of vectors and answers
    dtype: torch.dtype
    #: names and shapes of the parameters
    space: ParameterSpace

    @spelled_out
    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        **options: Unpack[Options],
    ) -> None:
        # a subclass may refuse the loss, or take arguments of its own
        with Group(options.get("process_group")).guarded():
            self._take(Problem(model, loss, data, params, cache, **options))

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """The operator of a problem that exists already; it shares the linearisations."""
        operator = cls.__new__(cls)
        operator._take(problem)
        return operator

    def _take(self, problem: Problem) -> None:
        self._problem = problem
        self.group = problem.group
        self.space = problem.space
        self.size = problem.space.size
        self.dtype = problem.dtype
        self.device = problem.space.device
        self.check_finite = problem.check_finite
        self.local_vectors = problem.local_vectors

    def _batches(self) -> Pass[Any]:
        """One pass that gives what :meth:`_product` needs of each batch."""
        return self._problem.linearisations()

    @abstractmethod
    def _product(self, at: Any, columns: list[Blocks]) -> Tensor | Iterable[Blocks]:
        """The unnormalised product of one batch with each column: rows ``[K, P]``, or blocks one after the other.

        ``at`` is an item of :meth:`_batches`.
        """

    def _scale(self) -> float:
        """The factor on the sum over batches."""
        return self._problem.mean_scale()

    #: whether the indices of data among those of all ranks matter
    _by_index = False

    def _saying(
        self,
        method: str,
        vectors: Sequence[Tensor] = (),
        count: Callable[[], float] | None = None,
    ) -> Saying:
        """What this rank does in a method, to be compared with the other ranks."""
        return Saying(f"{self._name()}{method}", vectors, self._by_index, count)

    def _name(self) -> str:
        """The operator with its numeric arguments, as ranks compare it."""
        return type(self).__name__

    def identity(self) -> dict[str, Any]:
        """The matrix, and what model, loss and data it is of; reads the data once."""
        return {"the operator": self._name(), **self._problem.identity()}

    def _columns(self, columns: list[Tensor]) -> Tensor:
        vectors, factors = self._taken([c.detach() for c in columns])
        blocks = [self.space.blocks(v) for v in vectors]
        with self._problem.call(self._saying(" @ v", columns)) as rounds:
            for _ in rounds:
                sums = Sums(len(vectors), self.space)
                with self._batches() as batches:
                    for at in batches:
                        sums.add(self._product(at, blocks))
        total = self.group.sum(sums.rows()).mul_(self._scale())
        if factors is not None:
            total.mul_(factors.unsqueeze(1))
        return total.to(self.dtype)

    def _taken(self, columns: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The columns as :meth:`_product` takes them, and what their products are multiplied with afterwards."""
        return narrowed(columns, self._problem.space.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(P={self.size}, {self.dtype}, {self.device})"


class Sums:
    """Σ over batches of K products, in the dtype of sums.

    Args:
        count: K.
        space: the parameters.
    """

    def __init__(self, count: int, space: ParameterSpace) -> None:
        self._shape = (count, space.size)
        self._space = space
        self._dtype = dtype_of_sums(space.dtype)
        self._rows: Tensor | None = None

    def add(self, products: Tensor | Iterable[Blocks]) -> None:
        """Adds the products of one batch: rows ``[K, P]``, or blocks one after the other, which are emptied."""
        rows, space = self._rows, self._space
        if isinstance(products, Tensor):
            self._rows = products.to(self._dtype) if rows is None else rows.add_(products)
            return
        first = rows is None
        if rows is None:
            rows = torch.empty(self._shape, dtype=self._dtype, device=space.device)
        for row, product in zip(rows, products, strict=True):
            if space.size <= _SMALL and all([block.dtype == row.dtype for block in product]):
                flat = torch.cat(
                    [block.reshape(-1) for block in product], out=row if first else None
                )
                if not first:
                    row.add_(flat)
                continue
            for place in reversed(space.blocks(row)):
                block = product.pop()  # freed once written, so that two whole vectors never exist
                if first:
                    place.copy_(block)
                else:
                    place.add_(block)
        self._rows = rows

    def rows(self) -> Tensor:
        """The sums, ``[K, P]``: zeros where no batch had a sample, though another rank's may."""
        if self._rows is None:
            return torch.zeros(self._shape, dtype=self._dtype, device=self._space.device)
        return self._rows


def narrowed(columns: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
    """Vectors in the dtype of the network's own arithmetic, and factors [K] to multiply their products with.

    The entries of a unit vector of ten million entries lie in fp16's subnormal range or below it. So each vector is
    first divided by a power of two, which is exact, to bring its size to one.
    """
    if all(c.dtype == dtype for c in columns):
        return columns, None
    largest = torch.stack([c.abs().max() if c.numel() else c.new_zeros(()) for c in columns])
    # 0 and nonfinite vectors keep the factor one
    exponents = torch.frexp(largest).exponent.clamp(-120, 120)
    usual = torch.isfinite(largest) & (largest > 0)
    factors = torch.where(usual, torch.ldexp(torch.ones_like(largest), exponents), 1.0)
    return [(c / f).to(dtype) for c, f in zip(columns, factors, strict=True)], factors


def pulled_back(at: Linearisation, outputs: list[Tensor]) -> Iterator[Blocks]:
    """Jᵀ u for each u, one after the other, as the last use of this pass."""
    return (at.vjp(u, last=u is outputs[-1]) for u in outputs)
