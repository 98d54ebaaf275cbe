"""The empirical Fisher matrix.

One file because half of it is the docstrings of one class; solves and eigenpairs are in sample_space.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from curvext.arguments import as_choice, as_number
from curvext.finite import finite_answer
from curvext.operators.curvature import Blocks, CurvatureOperator
from curvext.operators.forms import whole_vector
from curvext.operators.linear import LinearOperator, Vector
from curvext.operators.sample_gradients import SampleGradients, narrowed_blocks
from curvext.operators.sample_space import eigenvectors, solve
from curvext.options import Options, spelled_out
from curvext.per_sample.recorded import Records
from curvext.per_sample.reductions import SquaredNorms, SquareSum
from curvext.problem import Pass, Problem
from curvext.processes import Group, Saying, collective
from curvext.products.linearisation import Linearisation
from curvext.results import EigenResult
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # those of typing need Python 3.11

#: what a datum is
_PER = ("sample", "token")


class EmpiricalFisherOperator(CurvatureOperator):
    """The empirical Fisher matrix F_emp = (1/N) Σ_n g_n g_nᵀ, with g_n = ∇ℓ_n at the true labels.

    g_n is N times sample n's share of the risk, so that mean_n g_n = ∇L exactly, also with class
    weights and ignored positions; with reduction "sum" g_n is the share itself and F_emp = Σ_n g_n g_nᵀ.
    A sample is an index of the batch dimension: its tokens or pixels belong together.

    It is a second moment of gradients, and no estimate of the Fisher matrix unless the model fits the
    data: its labels are the data's, not the model's (Kunstner, Hennig & Balles 2019). The square of a
    mini-batch's mean gradient, common in continual learning, is neither.

    Args:
        per: "sample", or "token" for cross-entropy: every output position that is not ignored is a
            datum of its own, F = (1/M) Σ_m g_m g_mᵀ with g_m = M times the position's share.

    Raises:
        ValueError: by its methods: a custom loss couples the samples of a batch, so that there is no g_n.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> E = cx.EmpiricalFisherOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> E.diagonal(), E.trace(), E.gradient_norms()
        (tensor([2., 2.]), tensor(4.), tensor([2., 2.]))
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
        per: str = "sample",
        **options: Unpack[Options],
    ) -> None:
        with Group(options.get("process_group")).guarded():
            self._per = as_choice("per", per, _PER)
            super().__init__(model, loss, data, params, cache, **options)

    @classmethod
    def of(cls, problem: Problem, per: str = "sample") -> Self:
        """The operator of a problem that exists already; it shares the linearisations."""
        operator = cls.__new__(cls)
        with problem.group.guarded():
            operator._take(problem)
            operator._per = as_choice("per", per, _PER)
        return operator

    def _name(self) -> str:
        return f"{type(self).__name__}(per={self._per!r})"

    def _saying(
        self,
        method: str,
        vectors: Sequence[Tensor] = (),
        count: Callable[[], float] | None = None,
    ) -> Saying:
        token = self._per == "token"
        return super()._saying(method, vectors, self._positions if token else count)

    def _batches(self) -> Pass[Linearisation] | Pass[Records | Linearisation]:
        return self._problem.linearisations() if self._per == "token" else self._problem.records()

    def _taken(self, columns: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        # records take vectors of any dtype
        return super()._taken(columns) if self._per == "token" else (columns, None)

    def _product(
        self, at: Linearisation | Records, columns: list[Blocks]
    ) -> Tensor | Iterator[Blocks]:
        if isinstance(at, Records):
            return at.weighted_sum(at.dot(columns).T)
        if self._per == "token":
            return self._pulled_back(at, columns)
        blocks, factors = narrowed_blocks(columns, self._problem.space)
        return _times(self._pulled_back(at, blocks), factors)

    def _pulled_back(self, at: Linearisation, columns: list[Blocks]) -> Iterator[Blocks]:
        residual = at.point.residual_by_sample
        for v in columns:
            slope = residual * at.jvp(v)  # summed over a datum's outputs: <g_n, v>
            if self._per == "token":
                inner = at.point.position_sum(slope)
            else:
                inner = slope.reshape(len(slope), -1).sum(1).view([-1] + [1] * (residual.ndim - 1))
            yield at.vjp(residual * inner, last=v is columns[-1])

    def _scale(self) -> float:
        return self._token_scale() if self._per == "token" else self._problem.outer_scale()

    def _token_scale(self) -> float:
        """M of the last collective call."""
        if self._problem.loss.reduction == "sum":
            return 1.0
        return self._problem.ranks.counted * self._problem.mean_scale() ** 2

    def _positions(self) -> float:
        """M of this rank's data."""
        if self._problem.loss.reduction == "sum":
            return 0.0
        with self._problem.backward_passes() as batches:
            return sum(point.positions for _, point in batches)

    @collective
    def diagonal(self) -> Tensor:
        """diag F_emp, ``[P]``, exact: (1/N) Σ_n g_n². One backward pass for each batch.

        With ``per="token"`` one backward pass for each position of a sample.
        """
        return self.flatten(self.named_diagonal())

    @collective
    def named_diagonal(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The same by parameter, without the flat vector; in ``dtype``, or that of the operator."""

        token = self._per == "token"
        with self._problem.call(self._saying(".diagonal")) as rounds:
            for _ in rounds:
                squares = SquareSum(self._problem.space)
                with self._problem.backward_passes() as batches:
                    for backward, point in batches:
                        columns = (
                            point.residual_by_position() if token else [point.residual_by_sample]
                        )
                        squares.run(backward, ((column, 1.0) for column in columns))
        return squares.named(self._scale(), dtype or self.dtype, self.group)

    @collective
    def gradient_norms(self, dtype: torch.dtype | None = None) -> Tensor:
        """‖g_n‖ for every sample in the order of the data, ``[N]``; one backward pass for each batch.

        In ``dtype``, or that of the operator.
        """
        self._samples_only("gradient_norms")
        with self._problem.data_check.in_order(_ROWS_GIVEN):
            squared = self._squared_norms()
        return squared.sqrt_().mul_(self._problem.sample_scale()).to(dtype or self.dtype)

    @collective
    def trace(self) -> Tensor:
        """tr F_emp, exact: the mean squared gradient norm."""
        if self._per == "token":
            return self.diagonal().sum()
        return self._squared_norms().sum().mul_(self._problem.outer_scale()).to(self.dtype)

    @collective
    def products(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """⟨g_n, v⟩ for every sample, in the order of the data; R v with R the matrix of rows g_nᵀ.

        The rate at which sample n's loss falls along −v. Influence, TracIn and gradient similarity are products with
        particular v.

        Args:
            v: flat ``[P]`` or ``[P, K]``, or ``{name: tensor}``, of :attr:`dtype`.

        Returns:
            ``[N]``, or ``[N, K]`` for K columns, in :attr:`dtype`, without a graph.

        Raises:
            TypeError, ValueError: ``v`` does not fit, or contains nan or inf, where an operator looks.
            ValueError: the operator is per token, or a custom loss couples the samples of a batch.

        Cost: with records kept one product of two matrices for each layer; else a backward pass for each batch.

        Example:
            >>> import torch, curvext as cx
            >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
            >>> _ = torch.nn.init.ones_(model.weight)
            >>> E = cx.EmpiricalFisherOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
            >>> E.products(torch.tensor([1.0, 3.0]))
            tensor([2., 6.])
        """
        self._samples_only("products")
        vector, _ = whole_vector(self, v, "products: v", 1, 2)
        columns = vector.detach().reshape(self.size, -1) if vector.ndim == 1 else vector.detach()
        rows = SampleGradients(self._problem, order=_ROWS_GIVEN).times(
            columns, f"{self._name()}.products", [columns]
        )
        rows = rows.mul_(self._problem.sample_scale()).to(self.dtype)
        return rows[:, 0] if vector.ndim == 1 else rows

    @collective
    def weighted(self, c: Tensor) -> Tensor:
        """Σ_n c_n g_n; Rᵀ c with R the matrix of rows g_nᵀ, the transpose of :meth:`products`.

        With c = 1/N, and "mean", it is the gradient of the risk.

        Args:
            c: ``[N]`` or ``[N, K]``, of :attr:`dtype`, in the order of the data.

        Returns:
            Flat ``[P]``, or ``[P, K]`` for K columns, in :attr:`dtype`, without a graph.

        Raises:
            TypeError, ValueError: ``c`` does not fit, or contains nan or inf, where an operator looks.
            ValueError: the operator is per token; a loader gave the samples in another order than in an earlier
                per-sample call; or a custom loss couples the samples of a batch.

        Cost: as :meth:`products`.

        Example:
            >>> import torch, curvext as cx
            >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
            >>> _ = torch.nn.init.ones_(model.weight)
            >>> E = cx.EmpiricalFisherOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
            >>> E.weighted(torch.tensor([0.5, 1.0]))
            tensor([1., 2.])
        """
        self._samples_only("weighted")
        self._check_form(c, "weighted: c")
        if c.ndim not in (1, 2):
            raise ValueError(f"weighted: c: expected shape [N] or [N, K], got {list(c.shape)}")
        columns = c.detach().unsqueeze(1) if c.ndim == 1 else c.detach()
        gradients = SampleGradients(self._problem, order=_ROWS_GIVEN, begun=True)
        total = gradients.transposed_times(columns, "weighted: c", [columns])
        total = total.mul_(self._problem.sample_scale()).to(self.dtype)
        return total[:, 0] if c.ndim == 1 else total

    @collective
    def gram(self, other: EmpiricalFisherOperator | Problem | Any = None) -> Tensor:
        """⟨g_n, g_m⟩ for all pairs of samples, or ⟨g_n, g'_m⟩ with those of other data or another risk.

        Computed for pairs of batches: one pass if the records are cached, else one more for each batch.

        Args:
            other: None for this operator's own samples; data, of the same model and loss; or the
                empirical Fisher or the risk of the same parameters: same names and shapes.

        Returns:
            ``[N, N']`` in the orders of the data, in :attr:`dtype`; g in the units of each risk.

        Raises:
            TypeError, ValueError: ``other`` is none of these, or has other parameters, dtype or device.
            ValueError: one of the two is per token, or some parameter has no fast path and its gradients are
                too large to materialise.
        """
        self._samples_only("gram")
        if other is None:
            gram = SampleGradients(self._problem).gram(f"{self._name()}.gram")
            return gram.mul_(self._problem.sample_scale() ** 2).to(self.dtype)
        theirs = self._other_problem(other)
        gram = SampleGradients(self._problem).gram_with(SampleGradients(theirs))
        gram.mul_(self._problem.sample_scale()).mul_(theirs.sample_scale())
        return gram.to(self.dtype)

    def _other_problem(self, other: EmpiricalFisherOperator | Problem | Any) -> Problem:
        """The problem of :meth:`gram`'s argument, on the same parameters."""
        if isinstance(other, EmpiricalFisherOperator):
            other._samples_only("gram: other")
            problem = other._problem
        elif isinstance(other, Problem):
            problem = other
        elif isinstance(other, (LinearOperator, nn.Module)):
            raise TypeError(
                "gram: other: expected data, a risk or an EmpiricalFisherOperator, got "
                f"{type(other).__name__}"
            )
        else:
            try:
                problem = self._problem.on(other)
            except (TypeError, ValueError) as error:
                raise type(error)(f"gram: other: {error}") from error
        mine, theirs = self._problem.space, problem.space
        if mine.shapes != theirs.shapes or mine.names != theirs.names:
            raise ValueError(
                f"gram: other: it is of the parameters {_shown(theirs.shapes)}, this one of "
                f"{_shown(mine.shapes)}; both must have the same names and shapes"
            )
        for what in ("dtype", "device"):
            if getattr(mine, what) != getattr(theirs, what):
                raise ValueError(
                    f"gram: other: its parameters have {what} {getattr(theirs, what)}, those of this one "
                    f"{getattr(mine, what)}"
                )
        return problem

    @collective
    def solve(self, b: Vector, damping: float = 1e-3) -> Vector:
        """(F_emp + λ I)⁻¹ b, exactly, through the N×N Gram matrix (Woodbury).

            x = (b − s Rᵀ (λ I + s R Rᵀ)⁻¹ R b) / λ,   F_emp = s Rᵀ R

        The difference cancels where b lies in the range of Rᵀ, and its rounding error is divided by λ. So the answer
        is refined on its residual while that falls, at most three times, and the best iterate is returned. Where λ is
        small beside ‖F_emp‖ (1e-5 of it in float32) all products with R are computed in float64.

        Args:
            b: flat ``[P]``, ``[P, K]`` or ``{name: tensor}``, or entries of each process; the answer has the same form
                and no graph.
            damping: λ > 0, in units of F_emp.

        Raises:
            TypeError, ValueError: ``b`` does not fit; it contains nan or inf, where an operator looks.
            ValueError: ``damping`` is not positive: F_emp has at most rank N. Or it is lost in the rounding of
                float64 beside F_emp.

        Cost: the Gram matrix, a Cholesky factor of it, and two products with R and two with Rᵀ for each pass; with a
        small λ the Gram matrix twice, and the records of a batch once more, in float64.
        """
        self._samples_only("solve")
        damping = as_number(
            "solve: damping",
            damping,
            "λ > 0, finite, as F_emp has at most rank N and so no inverse",
            lambda value: 0 < value < math.inf,
        )
        if not isinstance(b, (Tensor, Mapping)):
            raise TypeError(
                f"solve: b: expected a tensor or {{name: tensor}}, got {type(b).__name__}"
            )
        whole, back = whole_vector(self, b, "solve: b", 1, 2)
        right = whole.detach().view(self.size, -1) if whole.ndim == 1 else whole.detach()
        if right.shape[1] == 0:
            return b.clone()  # type: ignore[attr-defined]  # a tensor: names have one column
        call = f"{self._name()}.solve, damping={damping!r}"
        answer = solve(self._problem, right, damping, call).to(right.dtype).view(whole.shape)
        return cast(Vector, answer if back is None else back(answer))

    @collective
    def eigh(self, k: int) -> EigenResult:
        """The ``k`` leading eigenpairs, exactly, through the N×N Gram matrix.

        Raises:
            ValueError: ``k`` exceeds the numerical rank of F_emp, which is at most N.
        """
        self._samples_only("eigh")
        values, basis = eigenvectors(self._problem, k, f"{self._name()}.eigh, k={k!r}")
        residuals = (self.matmat(basis) - basis * values).norm(dim=0)
        tolerance = 100 * torch.finfo(self.dtype).eps ** 0.5 * float(values[-1])
        converged = bool((residuals <= tolerance).all())
        return EigenResult(values, basis, residuals, converged, products=len(values))

    def _squared_norms(self) -> Tensor:
        with self._problem.call(self._saying(".gradient_norms")) as rounds:
            for _ in rounds:
                parts = [SquaredNorms(0, self._problem.space).total]
                with self._problem.backward_passes() as batches:
                    for backward, point in batches:
                        norms = SquaredNorms(backward.samples, self._problem.space)
                        backward.run(norms, point.residual_by_sample)
                        parts.append(norms.total)
        rows = self.group.rows(torch.cat(parts), self._problem.ranks.shares)
        return finite_answer(rows, "per-sample gradient norms")

    def _samples_only(self, method: str) -> None:
        if self._per == "token":
            raise ValueError(f"{method}: per='token' has no per-sample gradients; use per='sample'")


#: the subject of the error about a changed order of the data
_ROWS_GIVEN = "the weights of samples"


def _shown(shapes: Mapping[str, torch.Size]) -> str:
    words = [f"{name} {list(shape)}" for name, shape in list(shapes.items())[:5]]
    return ", ".join(words) + (" ..." if len(shapes) > 5 else "")


def _times(products: Iterator[Blocks], factors: Tensor | None) -> Iterator[Blocks]:
    for k, product in enumerate(products):
        yield product if factors is None else [p.to(factors.dtype) * factors[k] for p in product]
