"""The quantities of a risk by plain PyTorch: double backward, and one backward pass for each sample.

This module uses none of the library's derivatives: no rule, kernel, record or kept graph, and no closed form of a
loss. It shares only the evaluation of the model (:class:`curvext.evaluation.evaluation.Evaluation`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager, suppress

import torch
from torch import Tensor

from curvext.check.plain_loss import PlainLoss
from curvext.check.point import Point
from curvext.data import Batches, mapped
from curvext.evaluation.evaluation import Evaluation
from curvext.losses import OutputLoss
from curvext.processes import ALONE, Group, Words


class Plain:
    """The quantities of a risk from autograd alone.

    Args:
        evaluation: how the model is called, and its parameters.
        batches: the data.
        loss: the user's own.
        wide: whether all is computed in float64, by a copy of the model.
        group: the processes whose data the quantities are of; each adds up its own, and then they sum.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        batches: Batches,
        loss: PlainLoss,
        wide: bool = False,
        group: Group = ALONE,
    ) -> None:
        self._evaluation = evaluation
        self._space = evaluation.space
        self._batches = batches
        self._loss = loss
        self._wide = wide
        self.group = group
        #: Σ_b over batches, as the first pass finds them
        self.samples = 0
        #: the same of each process
        self.shares = [0]
        self.divisor = 0.0
        #: the largest output of a sample, in elements
        self.outputs = 0
        #: (1/divisor) Σ |residual · f|: the size of the value's terms before they cancel
        self.terms = 0.0
        #: how much larger residuals would be at the targets of other samples: the factor by which they cancel
        self.residuals_cancel = 1.0
        #: how much larger H_ℓ would be at outputs of unit size: the factor by which a saturated softmax cancels
        self.curvature_cancels = 1.0

    # ------------------------------------------------------------------ of the whole risk

    def value(self) -> Tensor:
        """L, ``[]``; counts samples and divisor, so it comes first."""
        self.samples, self.divisor, self.terms = 0, 0.0, 0.0
        residuals, curvatures = _Squares(), _Squares()

        def count(at: Point) -> Tensor:
            self.samples += at.samples
            self.divisor += at.divisor
            self.outputs = max(self.outputs, at.output[0].numel())
            self.terms += float((at.residual * at.output).detach().double().abs().sum())
            with suppress(ValueError, TypeError, RuntimeError):  # the loss takes no such targets
                residuals.add(at.residual.detach(), at.residual_of_others())
            with suppress(ValueError, TypeError, RuntimeError):  # it has no second derivative
                curvatures.add(*at.output_hessians())
            return at.value.detach().double()

        total = self._of_all(lambda: self._here(count, ()))
        here = [self.divisor, self.terms, *residuals.sums, *curvatures.sums]
        sums = self.group.sum(total.new_tensor(here)).tolist()
        self.divisor, self.terms = sums[0], sums[1] / (sums[0] if self._loss.mean else 1)
        self.residuals_cancel, self.curvature_cancels = _ratio(*sums[2:4]), _ratio(*sums[4:])
        self.shares = self.group.objects(self.samples)
        self.samples, self.outputs = sum(self.shares), max(self.group.objects(self.outputs))
        return total * self._mean_scale()

    def gradient(self) -> Tensor:
        """∇L, ``[P, 1]``."""
        size = (self._space.size, 1)
        return self._sum(lambda at: at.gradient().unsqueeze(1), size) * self._mean_scale()

    def hessian(self, V: Tensor) -> Tensor:
        """H V by double backward, ``[P, K]``."""
        return self._products(lambda at, v: at.hessian_product(v), V)

    def ggn(self, V: Tensor) -> Tensor:
        """G V = Jᵀ H_ℓ J V, ``[P, K]``."""
        return self._products(lambda at, v: at.pull(at.output_hessian(at.push(v))), V)

    def log_fisher(self, V: Tensor) -> Tensor:
        """F V = Jᵀ W diag(p) J V of log-probabilities f = log p, the scores e_c of each class c weighted by p_c."""
        return self._products(lambda at, v: at.pull(at.expected_outer(at.push(v))), V)

    def model_curvature(self, V: Tensor) -> Tensor:
        """R V, the second derivative of ⟨residual, f⟩ with the residual held, ``[P, K]``."""
        return self._products(lambda at, v: at.model_curvature_product(v), V)

    def empirical_fisher(self, V: Tensor) -> Tensor:
        """F_emp V = c Σ_n r_n ⟨r_n, v⟩, ``[P, K]``; ⟨r_n, v⟩ = ⟨residual_n, (J v)_n⟩."""

        def product(at: Point, v: Tensor) -> Tensor:
            return at.pull(at.outer(at.residual.detach(), at.push(v)))

        return self._products(product, V, self._outer_scale())

    def mc_fisher(self, V: Tensor, draws: OutputLoss) -> Tensor:
        """The same with the scores at the labels of seed 0 that the library draws, one for each datum."""

        def product(at: Point, v: Tensor) -> Tensor:
            return at.pull(at.outer(at.scores(draws), at.push(v)))

        return self._products(product, V)

    # ------------------------------------------------------------------ of samples and coordinates

    def sample_gradients(self, numbers: Collection[int]) -> Generator[Tensor, None, None]:
        """g_n ``[P]`` of each of some samples of this process, in order; to be closed, which restores the model.

        g_n = c J_nᵀ residual_n on the graph of the whole batch, by a cotangent that is zero but for the sample:
        where a network couples samples, sample n alone would be another function.
        """
        scale = self.samples * self._mean_scale() if self._loss.mean else 1.0
        with closing(self._points()) as points:
            for at in points:
                for n in range(at.samples):
                    if at.first + n in numbers:
                        yield at.sample_gradient(n) * scale

    def diagonals(self, coordinates: list[int], draws: OutputLoss | None) -> Tensor:
        """Some entries of diag F_emp, diag G and the diagonal of the Monte-Carlo Fisher, ``[n, 3]``.

        Each from its column of J, which dominates the cost.

        Args:
            coordinates: which.
            draws: the library's loss, which draws the labels; None where there is no likelihood.
        """

        def entries(at: Point, i: int) -> Tensor:
            unit = torch.zeros(self._space.size, device=self._space.device)
            unit[i] = 1
            column = at.push(unit)
            empirical = at.slopes(at.residual.detach(), column).square().sum()
            curvature = (at.output_hessian(column) * column).double().sum()
            if draws is None:
                return torch.stack([empirical, curvature, torch.zeros_like(curvature)])
            return torch.stack(
                [empirical, curvature, at.slopes(at.scores(draws), column).square().sum()]
            )

        shape = (len(coordinates), 3)
        total = self._sum(lambda at: torch.stack([entries(at, i) for i in coordinates]), shape)
        mean = self._mean_scale()
        return total * total.new_tensor([self._outer_scale(), mean, mean])

    # ------------------------------------------------------------------ passes

    def _products(
        self, product: Callable[[Point, Tensor], Tensor], V: Tensor, scale: float | None = None
    ) -> Tensor:
        shape = (self._space.size, V.shape[1])
        total = self._sum(lambda at: torch.stack([product(at, v) for v in V.unbind(1)], 1), shape)
        return total * (self._mean_scale() if scale is None else scale)

    def _sum(self, term: Callable[[Point], Tensor], shape: tuple[int, ...]) -> Tensor:
        return self._of_all(lambda: self._here(term, shape))

    def _here(self, term: Callable[[Point], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Σ over the batches of this process."""
        total = torch.zeros(shape, dtype=torch.float64, device=self._space.device)
        with closing(self._points()) as points:
            for at in points:
                total += term(at).double()
        return total

    def _of_all(self, here: Callable[[], Tensor]) -> Tensor:
        """Σ over the processes of what each computes; an error on one is an error on all."""
        with self.together():
            mine = here()
        return self.group.sum(mine)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work of this process on its own data, after which all tell each other whether it succeeded."""
        with self.group.guarded():
            yield
            if not self.group.alone:
                self.group.exchange(Words.of_call("check: a quantity by plain PyTorch"))

    def _points(self) -> Generator[Point, None, None]:
        """Each batch that has samples, inside the isolated model; to be closed, which restores the model."""
        first = sum(self.shares[: self.group.rank])
        for batch in self._batches:
            with self._evaluation.isolated():
                evaluated = self._evaluation.plain(mapped(batch, self._usable))
                if evaluated is None:
                    continue
                leaves = list(self._space.parameters.values())
                at = Point(*evaluated, leaves, self._loss, first)
                first += at.samples
                yield at

    def _usable(self, t: Tensor) -> Tensor:
        if self._wide and (t.is_floating_point() or t.is_complex()):
            return t.to(torch.complex128 if t.is_complex() else torch.float64)
        return t.clone() if t.is_inference() else t

    # ------------------------------------------------------------------ scale

    def _mean_scale(self) -> float:
        return 1 / self.divisor if self._loss.mean else 1.0

    def share_of_sample(self) -> float:
        """c with F_emp = c Σ_n g_n g_nᵀ."""
        return 1 / self.samples if self._loss.mean else 1.0

    def _outer_scale(self) -> float:
        return self.samples / self.divisor**2 if self._loss.mean else 1.0


class _Squares:
    """Sums of squares of some tensors and of others, over all batches."""

    def __init__(self) -> None:
        self.sums = [0.0, 0.0]

    def add(self, here: Tensor, there: Tensor | None) -> None:
        if there is not None:
            for i, t in enumerate((here, there)):
                self.sums[i] += float(t.double().square().sum())


def _ratio(here: float, there: float) -> float:
    """How much larger the others are, by their norms; 1 at least."""
    return max(1.0, (there / here) ** 0.5) if here else 1.0
