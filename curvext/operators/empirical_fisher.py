"""The empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.linearise.jacobian import Linearisation
from curvext.linearise.records import Records
from curvext.linearise.sums import SquaredNorms, SquareSum
from curvext.linearise.tape import Tape
from curvext.losses import LossPoint
from curvext.operators.curvature import Blocks, CurvatureOperator
from curvext.operators.linear import Vector
from curvext.problem import Problem
from curvext.results import EigenResult
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self needs Python 3.11


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
        self._per = _checked_per(per)

    @classmethod
    def of(cls, problem: Problem, per: str = "sample") -> Self:
        """The operator of a problem that exists already; it shares the linearisations."""
        operator = cls.__new__(cls)
        operator._take(problem)
        operator._per = _checked_per(per)
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
        with self._problem.watch.in_order(_ROWS):
            return self._gram().mul_(self._problem.sample_scale() ** 2).to(self.dtype)

    def _gram(self) -> Tensor:
        """R Rᵀ, unnormalised, ``[N, N]``."""
        blocks: dict[tuple[int, int], Tensor] = {}

        def outer(left: Records | Linearisation, i: int) -> None:
            def inner(right: Records | Linearisation, j: int) -> None:
                if j >= i:
                    blocks[i, j] = _recorded(left).gram(_recorded(right))

            self._problem.visit_records(inner)

        self._problem.visit_records(outer)
        numbers = sorted({i for i, _ in blocks})
        rows = [
            torch.cat([blocks[i, j] if i <= j else blocks[j, i].T for j in numbers], 1)
            for i in numbers
        ]
        gram = torch.cat(rows)
        return (gram + gram.T) / 2

    def solve(self, b: Vector, damping: float = 1e-3) -> Vector:
        """(F_emp + λ I)⁻¹ b, exactly, through the N×N Gram matrix (Woodbury).

            x = (b − s Rᵀ (λ I + s R Rᵀ)⁻¹ R b) / λ,   F_emp = s Rᵀ R

        The small system is solved in float64; the answer is refined on its residual until that
        stops falling, three times at most.

        Args:
            b: flat ``[P]``, ``[P, K]`` or ``{name: tensor}``; the answer has the same form.
            damping: λ > 0, in units of F_emp.

        Raises:
            ValueError: ``damping`` is not positive: F_emp has at most rank N.

        Cost: the Gram matrix, a Cholesky factor of it, and two products with R for each pass.
        """
        self._samples_only("solve")
        if not damping > 0:
            raise ValueError(
                f"solve: damping: expected λ > 0, got {damping!r}; F_emp has at most rank N, so it has no inverse"
            )
        if isinstance(b, Mapping):
            return self.split(self.solve(self.flatten(b), damping))
        right = b.unsqueeze(1) if b.ndim == 1 else b
        self._check(right, "b", ndim=2)
        factor = self._damped_gram_factor(damping)
        x = self._woodbury(right, factor, damping)
        size = None
        for _ in range(3):
            residual = right - self.matmat(x) - damping * x
            new_size = float(residual.norm())
            if size is not None and new_size > size / 2:
                break
            size = new_size
            x = x + self._woodbury(residual, factor, damping)
        return x.squeeze(1) if b.ndim == 1 else x

    def _damped_gram_factor(self, damping: float) -> Tensor:
        gram = self._gram().double().mul_(self._problem.outer_scale())
        gram.diagonal().add_(damping)
        return torch.linalg.cholesky(gram)

    def _woodbury(self, b: Tensor, factor: Tensor, damping: float) -> Tensor:
        inner = torch.cholesky_solve(self._project(b).double(), factor)
        correction = self._combine(inner.to(b.dtype)).mul_(self._problem.outer_scale())
        return (b - correction) / damping

    def eigh(self, k: int) -> EigenResult:
        """The ``k`` leading eigenpairs, exactly, through the N×N Gram matrix.

        Raises:
            ValueError: ``k`` exceeds the numerical rank of F_emp, which is at most N.
        """
        self._samples_only("eigh")
        gram = self._gram().double()
        scale = self._problem.outer_scale()
        values, vectors = torch.linalg.eigh(gram.mul_(scale))
        floor = (
            max(float(values[-1]), 0.0) * len(values) * torch.finfo(self._problem.space.dtype).eps
        )
        rank = min(int((values > floor).sum()), self.size)
        if not 1 <= k <= rank:
            raise ValueError(
                f"eigh: k: expected 1..{rank} (the numerical rank of F_emp here), got {k}"
            )
        values, vectors = values[-k:], vectors[:, -k:]
        lifted = self._combine(vectors.to(self.dtype)).mul_((scale / values).sqrt().to(self.dtype))
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

    def _project(self, b: Tensor) -> Tensor:
        """R b, ``[N, K]``."""
        columns = [self._problem.space.blocks(c) for c in b.T.contiguous()]
        parts: list[Tensor] = []
        self._problem.visit_records(lambda batch, _: parts.append(_recorded(batch).dot(columns)))
        return torch.cat(parts)

    def _combine(self, c: Tensor) -> Tensor:
        """Rᵀ c, ``[P, K]`` for c ``[N, K]``."""
        total = c.new_zeros(self.size, c.shape[1])
        start = 0

        def add(batch: Records | Linearisation, number: int) -> None:
            nonlocal start
            records = _recorded(batch)
            products = records.weighted_sum(c[start : start + records.samples].T.contiguous())
            total.add_(products.T)
            start += records.samples

        self._problem.visit_records(add)
        return total

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


def _recorded(batch: Records | Linearisation) -> Records:
    if isinstance(batch, Records):
        return batch
    raise ValueError(
        "EmpiricalFisherOperator: some parameter has no fast path and its per-sample gradients are too "
        "large to write out (risk.explain() names it); leave it out with params=, or use smaller batches"
    )


def _checked_per(per: str) -> str:
    if per not in ("sample", "token"):
        raise ValueError(f"per: expected 'sample' or 'token', got {per!r}")
    return per
