"""The empirical Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.arguments import as_choice, as_integer, as_number
from curvext.linearise.jacobian import Linearisation
from curvext.linearise.records import Records
from curvext.linearise.sums import SquaredNorms, SquareSum
from curvext.linearise.tape import Tape
from curvext.linearise.widened import in_float64
from curvext.losses import LossPoint
from curvext.operators.curvature import Blocks, CurvatureOperator
from curvext.operators.linear import Vector
from curvext.problem import Problem
from curvext.results import EigenResult
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self needs Python 3.11

#: rounding of ‖F_emp‖ up to this share of λ leaves each refinement a digit or two to gain
_SHARE_OF_ROUNDING = 1e-2
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

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        *,
        per: str = "sample",
        **options: Any,
    ) -> None:
        super().__init__(model, loss, data, params, cache, **options)
        self._per = as_choice("per", per, _PER)

    @classmethod
    def of(cls, problem: Problem, per: str = "sample") -> Self:
        """The operator of a problem that exists already; it shares the linearisations."""
        operator = cls.__new__(cls)
        operator._take(problem)
        operator._per = as_choice("per", per, _PER)
        return operator

    def _visit(self, visitor: Callable[[Linearisation | Records], None]) -> None:
        if self._per == "token":
            self._problem.visit(visitor)
        else:
            self._problem.visit_records(lambda batch, number: visitor(batch))

    def _block(
        self, at: Linearisation | Records, columns: list[Blocks]
    ) -> Tensor | Iterator[Blocks]:
        if isinstance(at, Records):
            return at.weighted_sum(at.dot(columns).T)
        return self._pulled_back(at, columns)

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
        if self._problem.loss.reduction == "sum":
            return 1.0
        positions = 0

        def count(tape: Tape, point: LossPoint) -> None:
            nonlocal positions
            positions += point.positions

        self._problem.visit_tapes(count)
        return positions * self._problem.mean_scale() ** 2

    def diagonal(self) -> Tensor:
        """diag F_emp, ``[P]``, exact: (1/N) Σ_n g_n². One backward pass for each batch.

        With ``per="token"`` one backward pass for each position of a sample.
        """
        return self.flatten(self.named_diagonal())

    def named_diagonal(self) -> dict[str, Tensor]:
        """The same by parameter, without the flat vector."""
        squares = SquareSum(self._problem.space)

        def add(tape: Tape, point: LossPoint) -> None:
            token = self._per == "token"
            columns = point.residual_by_position() if token else [point.residual_by_sample]
            squares.play(tape, ((column, 1.0) for column in columns))

        self._problem.visit_tapes(add)
        return squares.named(self._scale())

    def gradient_norms(self) -> Tensor:
        """‖g_n‖ for every sample in the order of the data, ``[N]``; one backward pass for each batch."""
        self._samples_only("gradient_norms")
        return self._squared_norms().sqrt_().mul_(self._problem.sample_scale()).to(self.dtype)

    def trace(self) -> Tensor:
        """tr F_emp, exact: the mean squared gradient norm."""
        if self._per == "token":
            return self.diagonal().sum()
        return self._squared_norms().sum().mul_(self._problem.outer_scale()).to(self.dtype)

    def gram(self) -> Tensor:
        """⟨g_n, g_m⟩ for all pairs of samples in the order of the data, ``[N, N]``.

        Batches are met in pairs: with the records cached one pass, else one more for each batch.
        """
        self._samples_only("gram")
        gram = _SampleGradients(self._problem).gram()
        return gram.mul_(self._problem.sample_scale() ** 2).to(self.dtype)

    def solve(self, b: Vector, damping: float = 1e-3) -> Vector:
        """(F_emp + λ I)⁻¹ b, exactly, through the N×N Gram matrix (Woodbury).

            x = (b − s Rᵀ (λ I + s R Rᵀ)⁻¹ R b) / λ,   F_emp = s Rᵀ R

        The difference cancels where b lies in the range of Rᵀ, and what rounding leaves is divided by λ. So the
        answer is refined on its residual while that falls, three times at most, the best is given, and where λ is
        small beside ‖F_emp‖ (1e-5 of it in float32) all products with R are computed in float64.

        Args:
            b: flat ``[P]``, ``[P, K]`` or ``{name: tensor}``; the answer has the same form and no graph.
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
        if isinstance(b, Mapping):
            return self.split(self.solve(self.flatten(b), damping))
        if not isinstance(b, Tensor):
            raise TypeError(
                f"solve: b: expected a tensor or {{name: tensor}}, got {type(b).__name__}"
            )
        self._check(b, "solve: b", 1, 2)
        right = b.detach().view(self.size, -1) if b.ndim == 1 else b.detach()
        if right.shape[1] == 0:
            return right.clone()
        rows = _SampleGradients(self._problem)
        gram = rows.gram().double().mul_(self._problem.outer_scale())
        norm = float(gram.norm())  # of ‖F_emp‖ a bound, at most √N of it
        amplified = norm * torch.finfo(rows.dtype).eps > _SHARE_OF_ROUNDING * damping
        if amplified and rows.dtype is not torch.float64:
            rows = _SampleGradients(self._problem, wide=True)
            gram = rows.gram().mul_(self._problem.outer_scale())
        x = self._refined(rows, right.to(rows.dtype), gram, norm, damping)
        return x.to(b.dtype).view(b.shape)

    def _refined(
        self, rows: _SampleGradients, b: Tensor, gram: Tensor, norm: float, damping: float
    ) -> Tensor:
        """The best of Woodbury's answer ``[P, K]`` and its refinements.

        Raises:
            ValueError: its residual is not small beside ‖F_emp + λ‖ ‖x‖.
        """
        scale = self._problem.outer_scale()
        gram.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(gram)
        too_small = f"solve: damping: λ = {damping:.3g} is too small beside ‖F_emp‖ ≤ {norm:.1e}: "
        if int(failed):
            raise ValueError(too_small + "their sum is singular to rounding; raise damping")
        x, left, size = torch.zeros_like(b), b, b.norm(dim=0)
        for _ in range(4):
            inner = torch.cholesky_solve(rows.times(left).double(), factor).to(b.dtype)
            trial = x + (left - rows.transposed_times(inner).mul_(scale)) / damping
            rest = b - rows.transposed_times(rows.times(trial)).mul_(scale) - damping * trial
            length = rest.norm(dim=0)
            better = ~(length >= size)  # nan, which only CUDA lets in, is given out
            halved = length < size / 2
            x, left = torch.where(better, trial, x), torch.where(better, rest, left)
            size = torch.where(better, length, size)
            if not bool(halved.any()):
                break
        length = b.norm(dim=0)
        reach = torch.maximum((norm + damping) * x.norm(dim=0), length)
        if bool((size > torch.finfo(b.dtype).eps ** (2 / 3) * reach).any()):
            worst = float((size / length).max())
            raise ValueError(too_small + f"the residual is {worst:.1e} ‖b‖; raise damping")
        return x

    def eigh(self, k: int) -> EigenResult:
        """The ``k`` leading eigenpairs, exactly, through the N×N Gram matrix.

        Raises:
            ValueError: ``k`` exceeds the numerical rank of F_emp, which is at most N.
        """
        self._samples_only("eigh")
        rows = _SampleGradients(self._problem)
        gram = rows.gram().double()
        scale = self._problem.outer_scale()
        values, vectors = torch.linalg.eigh(gram.mul_(scale))
        floor = (
            max(float(values[-1]), 0.0) * len(values) * torch.finfo(self._problem.space.dtype).eps
        )
        rank = min(int((values > floor).sum()), self.size)
        k = as_integer("eigh: k", k, 1, rank, "the numerical rank of F_emp here")
        values, vectors = values[-k:], vectors[:, -k:]
        lifted = rows.transposed_times(vectors.to(self.dtype)).mul_(
            (scale / values).sqrt().to(self.dtype)
        )
        # the lift of an orthonormal basis is one up to rounding, which grows as values fall
        basis, triangle = torch.linalg.qr(lifted.double())
        basis = (basis * triangle.diagonal().sign()).to(self.dtype)
        residuals = (self.matmat(basis) - basis * values.to(self.dtype)).norm(dim=0)
        tolerance = 100 * torch.finfo(self._problem.space.dtype).eps ** 0.5 * float(values[-1])
        return EigenResult(
            values.to(self.dtype),
            basis,
            residuals,
            bool((residuals <= tolerance).all()),
            products=k,
        )

    def _squared_norms(self) -> Tensor:
        parts: list[Tensor] = []

        def measure(tape: Tape, point: LossPoint) -> None:
            norms = SquaredNorms(tape.samples, self._problem.space)
            tape.play(norms, point.residual_by_sample)
            parts.append(norms.total)

        self._problem.visit_tapes(measure)
        return torch.cat(parts)

    def _samples_only(self, method: str) -> None:
        if self._per == "token":
            raise ValueError(f"{method}: per='token' has no per-sample gradients; use per='sample'")


#: what the order of the data matters to
_ROWS = "the rows of the Gram matrix go"


class _SampleGradients:
    """R, whose rows are the unnormalised gradients r_n of all samples, by products.

    Args:
        problem: the risk.
        wide: whether products are computed in float64, whatever the parameters are in.
    """

    def __init__(self, problem: Problem, wide: bool = False) -> None:
        self._problem = problem
        self._wide = wide
        self._begun = False
        #: of the vectors
        self.dtype = torch.float64 if wide else problem.space.dtype

    def gram(self) -> Tensor:
        """R Rᵀ, ``[N, N]``."""
        blocks: dict[tuple[int, int], Tensor] = {}

        def outer(left: Records | Linearisation, i: int) -> None:
            records = self._recorded(left)

            def inner(right: Records | Linearisation, j: int) -> None:
                if j >= i:
                    blocks[i, j] = records.gram(records if j == i else self._recorded(right))

            self._visit(inner)

        self._visit(outer)
        numbers = sorted({i for i, _ in blocks})
        rows = [
            torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in numbers], 1)
            for i in numbers
        ]
        gram = torch.cat(rows)
        return (gram + gram.T) / 2

    def times(self, b: Tensor) -> Tensor:
        """R b, ``[N, K]`` for b ``[P, K]``."""
        columns = [self._problem.space.blocks(c) for c in b.T.contiguous()]
        parts: list[Tensor] = []
        self._visit(lambda batch, _: parts.append(self._recorded(batch).dot(columns)))
        return torch.cat(parts)

    def transposed_times(self, c: Tensor) -> Tensor:
        """Rᵀ c, ``[P, K]`` for c ``[N, K]``."""
        total = c.new_zeros(self._problem.space.size, c.shape[1])
        start = 0

        def add(batch: Records | Linearisation, number: int) -> None:
            nonlocal start
            records = self._recorded(batch)
            products = records.weighted_sum(c[start : start + records.samples].T.contiguous())
            total.add_(products.T)
            start += records.samples

        self._visit(add)
        return total

    def _visit(self, visitor: Callable[[Records | Linearisation, int], None]) -> None:
        """All passes of one R go by the same rows."""
        with self._problem.watch.in_order(_ROWS, always=self._begun):
            self._begun = True
            self._problem.visit_records(visitor)

    def _recorded(self, batch: Records | Linearisation) -> Records:
        records = _recorded(batch)
        return in_float64(records) if self._wide else records


def _recorded(batch: Records | Linearisation) -> Records:
    if isinstance(batch, Records):
        return batch
    raise ValueError(
        "EmpiricalFisherOperator: some parameter has no fast path and its per-sample gradients are too "
        "large to write out (risk.explain() names it); leave it out with params=, or use smaller batches"
    )
