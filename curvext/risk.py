"""The empirical risk: the problem, checked once, and the operators that share its linearisation.

One file because half of it is the docstrings of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvext.arguments import as_integer, as_seed
from curvext.check import CheckResult, Plain, second_opinion
from curvext.check.plain_loss import PlainLoss
from curvext.dtypes import dtype_of_sums
from curvext.finite import finite_answer
from curvext.kronecker import (
    BlockDiagonalOperator,
    EKFACOperator,
    KFACOperator,
    ShampooOperator,
)
from curvext.operators import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    MCFisherOperator,
    ModelCurvatureOperator,
)
from curvext.operators.jacobian_products import jvp, vjp
from curvext.options import Options, spelled_out
from curvext.problem import Problem
from curvext.processes import Saying, collective
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11


class EmpiricalRisk(Problem):
    """L(θ) = (1/N) Σ_n ℓ(f(x_n; θ), y_n), and its curvature.

    Args:
        model: any ``nn.Module``. It must be in a mode in which its output is a function of its
            parameters (``model.eval()`` for dropout and batch-norm), and is left as found.
        loss: ``nn.CrossEntropyLoss``, ``nn.MSELoss``, ``nn.BCEWithLogitsLoss`` and
            ``curvext.CausalLMLoss`` have a closed-form output Hessian; any other callable
            ``loss(output, target) -> scalar`` goes through autograd in output space; over several batches
            it must be a mean or sum over samples.
        data: one batch ``(x, y)``, a mapping with "labels" (called as ``model(**inputs)``), or a
            re-iterable of batches. The answer for many batches is that for their concatenation.
        params: None for all parameters that require grad; names of parameters or modules, glob patterns, modules of
            the model, or a predicate ``(name, parameter) -> bool``.
        cache: "auto" keeps a batch's linearisation while it fits in half of the free memory; True
            keeps all, False none, a number is a budget in bytes. Before each product the risk checks whether
            parameters, buffers, attributes of modules and of the loss, hooks or ``forward`` changed. It does not see
            changes of global variables, files or a closure inside the model: make a new risk after those.
        forward: ``f(model, batch) -> output``, overrides how the model is called.
        target: ``f(batch) -> target``, likewise.
        reduction: "mean" or "sum" for a callable that has no such attribute: how it reduces.
        progress: show a progress bar over the batches of every pass (needs tqdm).
        chunk_outputs: products with G and F never hold the output of a batch: the last linear layer of a
            language model is applied to so many output positions at a time (softmax cross-entropy only).
        compile: products go through ``torch.compile``: True, or the name of a backend of it. The first product with
            H or R, and the first with G or F, for each shape of a batch takes seconds to minutes; later ones are
            faster than without, and kept linearisations take more memory. The model's control flow must not depend on
            tensor values.
        dtype: of vectors and answers. None for that of the parameters; ``torch.float32`` for parameters in bf16 or
            fp16, so that Lanczos and CG keep enough digits. The network still computes in its own dtype.
        process_group: the ``torch.distributed`` group whose ranks hold a shard of the data each. All ranks must make
            every call, and every rank gets the answer for the union. None: this process alone.
        max_batches: read only this many batches of ``data``, as if there were no others.
        check_finite: also check vectors on CUDA for nan and inf, at the cost of a synchronisation.

    Raises:
        TypeError, ValueError: an argument is of no accepted form; the message names it.
        RuntimeError: by a product, where ``compile`` is asked for: the model cannot be traced.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> H, G = risk.hessian(), risk.ggn()
        >>> torch.allclose(H.to_dense(), G.to_dense())  # a linear model has no curvature of its own
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, loss, data, params, cache, **options)

    @collective
    def value(self, *, linearise: bool = False) -> float:
        """L(θ).

        Args:
            linearise: whether a gradient or products at this point follow: then they need no forward pass of their own.

        Cost: a forward pass, where the value is not known from a pass before.
        """
        self.measure(Saying("value"), look=True, linearise=linearise)
        return self.totals.value * self.mean_scale()

    @collective
    def gradient(self) -> Tensor:
        """∇L as a flat vector ``[P]``, in the dtype of vectors: the parameters' own, or ``dtype``."""
        with self.call(Saying("gradient")) as rounds:
            for _ in rounds:
                total = self._summed_gradient()
        gradient = self.group.sum(total).mul_(self.mean_scale())
        return finite_answer(gradient, "gradient").to(self.dtype)

    @collective
    def flat_parameters(self) -> Tensor:
        """θ as a flat vector ``[P]``, a copy in the parameters' dtype; gathered where they are sharded."""
        with self._alone(), self.held.whole(self.group, "flat_parameters"):
            self.refresh()
            return torch.cat([p.detach().reshape(-1) for p in self.space.parameters.values()])

    def _summed_gradient(self) -> Tensor:
        with torch.inference_mode(False):  # later in-place additions run outside inference mode
            total = torch.zeros(
                self.space.size, dtype=dtype_of_sums(self.space.dtype), device=self.space.device
            )

        with self.linearisations() as batches:
            for at in batches:
                total.add_(torch.cat([g.reshape(-1) for g in at.gradient]))
        return total

    def jvp(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """J v, J = ∂f/∂θ: how the outputs of all samples move with the parameters, to first order.

        Args:
            v: flat ``[P]`` or ``[P, K]``, or ``{name: tensor}``, in the dtype of vectors.

        Returns:
            ``[N, ...]`` in the shape of the outputs and the order of the data, or ``[N, ..., K]``; no graph.

        Raises:
            TypeError, ValueError: ``v`` does not fit, or contains nan or inf where an operator looks.
            ValueError: batches differ in the shape of a sample's output, or the data is sharded over processes.

        Cost: up to one forward pass on the kept graph for each column.

        Example:
            >>> import torch, curvext as cx
            >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
            >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.zeros(2, 1)))
            >>> risk.jvp(torch.tensor([3.0, 4.0]))
            tensor([[3.],
                    [4.]])
        """
        return jvp(self, v)

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, J = ∂f/∂θ: the gradient by the parameters of Σ_n ⟨u_n, f(x_n)⟩.

        Args:
            u: ``[N, ...]`` in the shape of the outputs and the order of the data, in the dtype of vectors.

        Returns:
            Flat ``[P]``, no graph; ``G.split`` of an operator of this risk names its parts.

        Raises:
            TypeError, ValueError: ``u`` does not fit, or contains nan or inf where an operator looks.

        Cost: one backward pass on the kept graph.

        Example:
            >>> import torch, curvext as cx
            >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
            >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.zeros(2, 1)))
            >>> risk.vjp(torch.tensor([[3.0], [4.0]]))
            tensor([3., 4.])
        """
        return vjp(self, u)

    def hessian(self) -> HessianOperator:
        """H = ∂²L/∂θ²."""
        return HessianOperator.of(self)

    def ggn(self) -> GGNOperator:
        """G = Jᵀ H_ℓ J."""
        return GGNOperator.of(self)

    def model_curvature(self) -> ModelCurvatureOperator:
        """R = H − G."""
        return ModelCurvatureOperator.of(self)

    def fisher(self) -> FisherOperator:
        """F, labels from the model; equals G where the loss has a likelihood."""
        return FisherOperator.of(self)

    def mc_fisher(self, samples: int = 1, seed: int = 0) -> MCFisherOperator:
        """F with ``samples`` labels drawn for each datum."""
        return MCFisherOperator.of(self, samples, seed)

    def empirical_fisher(self, per: str = "sample") -> EmpiricalFisherOperator:
        """F_emp = (1/N) Σ_n g_n g_nᵀ."""
        return EmpiricalFisherOperator.of(self, per)

    def kfac(self, **options: Any) -> KFACOperator:
        """The blocks of a Fisher matrix as Γ ⊗ A; ``options`` are those of :class:`curvext.KFACOperator`."""
        return KFACOperator.of(self, **options)

    def ekfac(self, **options: Any) -> EKFACOperator:
        """The same eigenbasis with exact eigenvalues; ``options`` are those of :class:`curvext.EKFACOperator`."""
        return EKFACOperator.of(self, **options)

    def shampoo(self, **options: Any) -> ShampooOperator:
        """By the sides of every datum's gradient; ``options`` are those of :class:`curvext.ShampooOperator`."""
        return ShampooOperator.of(self, **options)

    def block_diagonal(self, **options: Any) -> BlockDiagonalOperator:
        """Exact diagonal blocks; ``options`` are those of :class:`curvext.BlockDiagonalOperator`."""
        return BlockDiagonalOperator.of(self, **options)

    @collective
    def check(
        self,
        samples: int = 8,
        vectors: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> CheckResult:
        """The library's own second opinion: each quantity recomputed by plain PyTorch on this model and data.

        The first thing to run on a new model. H v and R v by double backward; G v and F v as Jᵀ H_ℓ J v, with J v
        from the derivative of Jᵀ u by u and H_ℓ from the loss itself; F_emp v, norms and diagonals from the gradients
        of single samples, g_n = J_nᵀ r_n on the graph of the whole batch. None of the library's rules, kernels or kept
        graphs is used for it. Norms are compared at some random samples, diagonals at some random entries.

        An answer agrees if each parameter's part has an error of at most ε^(2/3) of its norm, with ε of the dtype. A
        quantity that the library refuses has a row with the message of the refusal. The model is left as found. With
        ``process_group=`` it is of the data of all processes.

        Args:
            samples: how many samples, and entries of diagonals, to compare.
            vectors: how many random vectors the matrices multiply.
            seed: of samples, entries and vectors.
            dtype: ``torch.float64`` recomputes by a copy of the model in float64. None in the parameters' own dtype,
                and where an answer in float32 differs then, in float64 to tell whose rounding it is.

        Returns:
            a :class:`CheckResult`, which prints as a table; ``.ok`` is for a test.

        Raises:
            ValueError, TypeError, RuntimeError: an argument does not fit; the risk answers nothing (a model in
                training mode, say), so there is nothing to check; the model cannot be copied to float64.

        Cost: some tens of gradients of the risk: about 10 for each vector, 2 for each of ``samples``, and the library's
            own answers, of which diag G takes one for each output of a sample (left out over 64).

        Example:
            >>> import torch, curvext as cx
            >>> model, loss = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
            >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.tensor([0, 1])))
            >>> risk.check().ok
            True
        """
        samples = as_integer("check: samples", samples, 1)
        vectors = as_integer("check: vectors", vectors, 1)
        seed = as_seed("check: seed", seed)
        if dtype not in (None, torch.float64):
            raise ValueError(f"check: dtype: expected None or torch.float64, got {dtype!r}")
        wide = dtype is torch.float64 and self.space.dtype is not torch.float64
        result = self._checked(samples, vectors, seed, wide)
        if result.ok or wide or self.space.dtype is not torch.float32:
            return result
        try:
            return result.settled_by(self._checked(samples, vectors, seed, wide=True), "float32")
        except (ValueError, TypeError, RuntimeError):  # it has no copy in float64
            return result

    def _checked(self, samples: int, vectors: int, seed: int, wide: bool) -> CheckResult:
        if wide and self.held.stand_ins:
            raise TypeError(
                "check: dtype: a model under fully_shard has no copy in float64; use dtype=None"
            )
        call = f"check({samples=}, {vectors=}, {seed=}, {wide=})"
        with self._alone(), self.group.call(call), self.held.whole(self.group, call):
            return self._second_opinion(samples, vectors, seed, wide)

    def _second_opinion(self, samples: int, vectors: int, seed: int, wide: bool) -> CheckResult:
        evaluation = self._evaluation.in_float64() if wide else self._evaluation
        loss = PlainLoss(self._given_loss, self.loss.reduction, wide)
        plain = Plain(evaluation, self._batches, loss, wide, self.group)
        return second_opinion(self, plain, samples, vectors, seed)
