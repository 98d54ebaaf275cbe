"""The Fisher matrix, exact and by Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from curvext.arguments import as_integer
from curvext.losses import LossPoint
from curvext.operators.curvature import Blocks, CurvatureOperator, pulled_back
from curvext.operators.ggn import GGNOperator
from curvext.options import Options, spelled_out
from curvext.per_sample.reductions import SquareSum
from curvext.problem import Pass, Problem
from curvext.processes import Group, collective
from curvext.products.linearisation import Linearisation, Linearised
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # those of typing need Python 3.11


Item = TypeVar("Item")


class FisherOperator(GGNOperator):
    """The Fisher matrix F = E_{y~p(y|x;θ)}[∇log p ∇log pᵀ], labels from the *model*; "type 2".

    For every loss that is −log p of an exponential family in its natural parameters F equals G, and is
    computed as such: softmax cross-entropy, also with class weights, smoothing, ignored positions and
    probability targets, which enter with the weight they have in L; squared error, whose Gaussian is the
    one with −log p = ℓ + const (variance C/2 for each of C outputs with "mean", 1/2 with "sum");
    binary cross-entropy with independent Bernoulli outputs (Martens 2020). ``nn.NLLLoss`` on log-probabilities has the
    Fisher matrix of the softmax before them, while its G is zero.

    Do not confuse it with :class:`EmpiricalFisherOperator`, whose labels are the data's.

    Raises:
        ValueError: the loss has no likelihood; use :class:`GGNOperator`.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> cx.FisherOperator(model, loss, data).diagonal()
        tensor([1.0000, 1.0000])
    """

    def _take(self, problem: Problem) -> None:
        _check_likelihood(problem, "FisherOperator")
        super()._take(problem)

    def _product(self, at: Linearised, columns: list[Blocks]) -> Iterator[Blocks]:
        if self._problem.loss.fisher_is_ggn or not isinstance(at, Linearisation):
            return super()._product(at, columns)
        tangents = torch.stack([at.jvp(v) for v in columns])
        return pulled_back(at, list(at.point.fisher_mm(tangents)))

    def _root_columns(self, point: LossPoint) -> Iterator[tuple[Tensor, float]]:
        return point.fisher_root_columns()


class MCFisherOperator(CurvatureOperator):
    """The Monte-Carlo Fisher matrix: F with ``samples`` labels drawn from the model for each datum.

    Unbiased for F, PSD, of rank at most N·samples. A label depends on (seed, index of the datum,
    position) alone: the same for every batch size, every product and the diagonal.

    Args:
        samples: labels drawn for each datum.
        seed: of the draws.

    Raises:
        ValueError: the loss has no likelihood, ``samples`` is no positive integer, or ``seed`` is no integer.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
        >>> data = (torch.eye(2), torch.tensor([0, 1]))
        >>> M = cx.MCFisherOperator(model, loss, data, samples=4, seed=1)
        >>> torch.allclose(M.diagonal(), M.to_dense().diagonal())
        True
    """

    @spelled_out
    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        *,
        samples: int = 1,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        with Group(options.get("process_group")).guarded():
            self._draw(samples, seed)
            super().__init__(model, loss, data, params, cache, **options)

    @classmethod
    def of(cls, problem: Problem, samples: int = 1, seed: int = 0) -> Self:
        """The operator of a problem that exists already; it shares the linearisations."""
        operator = cls.__new__(cls)
        with problem.group.guarded():
            operator._take(problem)
            operator._draw(samples, seed)
        return operator

    def _take(self, problem: Problem) -> None:
        _check_likelihood(problem, "MCFisherOperator")
        super()._take(problem)

    def _draw(self, samples: int, seed: int) -> None:
        self._samples = as_integer("MCFisherOperator: samples", samples, 1)
        self._seed = as_integer("MCFisherOperator: seed", seed)

    #: a label depends on the index of its datum
    _by_index = True

    def _name(self) -> str:
        return f"{type(self).__name__}(samples={self._samples}, seed={self._seed})"

    def _batches(self) -> Pass[Linearisation]:
        return self._in_order(self._problem.linearisations())

    @contextmanager
    def _in_order(self, batches: Pass[Item]) -> Iterator[Iterator[Item]]:
        """A pass in the same order as earlier ones, because drawn labels depend on the order."""
        with self._problem.data_check.in_order(LABELS, always=True), batches as iterator:
            yield iterator

    def _product(self, at: Linearisation, columns: list[Blocks]) -> Iterator[Blocks]:
        tangents = [at.jvp(v) for v in columns]
        products = [torch.zeros_like(t) for t in tangents]
        for draw in range(self._samples):
            score = at.point.sampled(self._seed, draw, self._problem.ranks.start + at.first)
            for product, tangent in zip(products, tangents, strict=True):
                inner = (score * tangent).reshape(len(score), -1).sum(1)
                product += score * inner.view([-1] + [1] * (score.ndim - 1))
        return pulled_back(at, products)

    def _scale(self) -> float:
        return self._problem.mean_scale() / self._samples

    @collective
    def diagonal(self) -> Tensor:
        """The diagonal of this estimate, ``[P]``, exact; one backward pass for each draw."""
        return self.flatten(self.named_diagonal())

    @collective
    def named_diagonal(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The same by parameter, without the flat vector; in ``dtype``, or that of the operator."""

        with self._problem.call(self._saying(".diagonal")) as rounds:
            for _ in rounds:
                squares = SquareSum(self._problem.space)
                with self._in_order(self._problem.backward_passes()) as batches:
                    for backward, point in batches:
                        squares.run(backward, self._drawn(point, backward.first))
        return squares.named(self._scale(), dtype or self.dtype, self.group)

    def _drawn(self, point: LossPoint, first: int) -> Iterator[tuple[Tensor, float]]:
        """The residual at each draw of a batch whose first datum has the index ``first`` on this rank."""
        for draw in range(self._samples):
            yield point.sampled(self._seed, draw, self._problem.ranks.start + first), 1.0

    @collective
    def trace(self) -> Tensor:
        """The trace of this estimate, at the cost of :meth:`diagonal`."""
        return self.diagonal().sum()


#: the subject of the error about a changed order of the data
LABELS = "the labels drawn for samples"


def _check_likelihood(problem: Problem, owner: str) -> None:
    if problem.loss.no_likelihood is not None:
        raise ValueError(
            f"{owner}: {problem.loss.no_likelihood}, so there is no Fisher matrix; "
            "GGNOperator is the PSD curvature of such a loss"
        )
