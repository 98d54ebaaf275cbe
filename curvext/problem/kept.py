"""Linearisations and records of each batch, made on first use and kept within the budget of the cache."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

from torch import Tensor, nn

from curvext.cache import Cache
from curvext.evaluation.evaluation import Evaluation
from curvext.evaluation.hooks import same
from curvext.losses import LossPoint, OutputLoss
from curvext.operations.operation import GraphUse
from curvext.per_sample.backward_pass import BackwardPass
from curvext.per_sample.plan_cache import plan_cache_of
from curvext.per_sample.recorded import Records
from curvext.problem.kept_records import Draw, KeptRecords
from curvext.problem.slots import BatchSlot, Kept
from curvext.problem.totals import BatchTotals
from curvext.products.compiled import CompiledHessian, CompiledJacobian, Compiler
from curvext.products.kept_graph import KeptGraph
from curvext.products.linearisation import Linearisation, Linearised, SecondDerivatives
from curvext.products.lm_head import LMHeadLinearisation
from curvext.space import ParameterSpace

Compiled = TypeVar("Compiled", CompiledJacobian, CompiledHessian)


class KeptBatches:
    """Returns the item that a pass needs for a batch: the kept one, or a new one.

    Args:
        model: the module.
        evaluation: the model as a function of a batch.
        space: the parameters θ.
        loss: ℓ.
        cache: where things are kept.
        compiler: what traces and compiles products, or None.
        chunk_outputs: how many output positions the last layer of a language model takes at a time, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluation: Evaluation,
        space: ParameterSpace,
        loss: OutputLoss,
        cache: Cache,
        compiler: Compiler | None,
        chunk_outputs: int | None,
    ) -> None:
        self._model = model
        self._evaluation = evaluation
        self._space = space
        self._cache = cache
        self._compiler = compiler
        self._chunk_outputs = chunk_outputs
        self._plans = plan_cache_of(model)
        self._loss = loss
        self._records = KeptRecords(space, cache, self.backward_pass)

    def renew(self, loss: OutputLoss, model_changed: bool) -> None:
        """Adopts the current loss, and drops the plans of a changed model."""
        self._loss = loss
        if model_changed:
            self._evaluation.invalidate()
            if self._compiler is not None:
                self._compiler.invalidate()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plans": None}  # plans belong to a model, not to its copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plans = plan_cache_of(self._model)

    @property
    def _parameters(self) -> list[Tensor]:
        """The current θ."""
        return list(self._space.parameters.values())

    # ------------------------------------------------------------------ products

    def linearisation(self, slot: BatchSlot) -> Kept[Linearisation]:
        """The batch, ready for J v and Jᵀ u."""
        compiler = self._compiler
        if compiler is None:
            return self._graph(slot, twice=False)
        place = (CompiledJacobian, slot.number)
        kept: Kept[CompiledJacobian] | None = self._cache.get(place, slot.key)
        if kept is None:
            kept = self._put_compiled(
                place, slot, *compiler.jacobian(slot.batch, self._loss, slot.first, slot.number)
            )
        return kept

    def second_derivatives(self, slot: BatchSlot) -> Kept[SecondDerivatives]:
        """The batch, ready for H v and R v."""
        compiler = self._compiler
        if compiler is None:
            return self._graph(slot, twice=True)
        place = (CompiledHessian, slot.number)
        kept: Kept[CompiledHessian] | None = self._cache.get(place, slot.key)
        if kept is None:
            kept = self._put_compiled(
                place, slot, *compiler.second_derivatives(slot.batch, self._loss, slot.number)
            )
        return kept

    def ggn(self, slot: BatchSlot) -> Kept[Linearised]:
        """The batch, ready for G v, in chunks of output positions if ``chunk_outputs`` is given."""
        if self._chunk_outputs is None:
            return self.linearisation(slot)
        place = (LMHeadLinearisation, slot.number)
        kept: Kept[LMHeadLinearisation] | None = self._cache.get(place, slot.key)
        if kept is not None:
            return kept
        output, point = self._evaluated(slot, "linearised")
        if self._evaluation.hooked:
            raise ValueError(
                "chunk_outputs: the forward pass puts hooks on tensors, which products in chunks would go past; "
                "remove them, or leave chunk_outputs=None"
            )
        at = LMHeadLinearisation(output, point, self._parameters, self._chunk_outputs)
        kept = Kept(BatchTotals.of(output, point), at)
        at.hold(self._cache.put(place, slot.key, kept))
        return kept

    def _graph(self, slot: BatchSlot, twice: bool) -> Kept[KeptGraph]:
        once, for_twice = (KeptGraph, 1, slot.number), (KeptGraph, 2, slot.number)
        kept: Kept[KeptGraph] | None = self._cache.get(for_twice, slot.key)
        if kept is not None:  # it serves for first derivatives too
            return kept
        kept = self._cache.get(once, slot.key)
        if kept is not None and not twice:
            return kept
        if kept is None or not kept.item.twice_differentiable:
            output, point = self._evaluated(slot, "twice" if twice else "linearised")
            hooked = self._evaluation.hooked
            at = KeptGraph(output, point, self._parameters, slot.first, hooked=hooked)
            if hooked and twice:
                at = self._without_idle_hooks(at, slot)
            kept = Kept(BatchTotals.of(output, point), at)
        if twice:
            kept.item.keep_gradient()
            self._cache.drop(once)
        kept.item.hold(self._cache.put(for_twice if twice else once, slot.key, kept))
        return kept

    def _without_idle_hooks(self, at: KeptGraph, slot: BatchSlot) -> KeptGraph:
        """The batch without hooks on tensors if its gradient is the same without them, else unchanged."""
        output = self._evaluation.without_tensor_hooks(slot.batch)
        muted = KeptGraph(output, at.point, self._parameters, slot.first)
        if self._evaluation.hooked or not same(
            at.vjp(at.point.residual), muted.vjp(at.point.residual)
        ):
            return at
        return muted

    def _put_compiled(
        self, place: Hashable, slot: BatchSlot, output: Tensor, at: Compiled
    ) -> Kept[Compiled]:
        kept = Kept(BatchTotals.of(output, at.point), at)
        at.hold(self._cache.put(place, slot.key, kept))
        return kept

    # ------------------------------------------------------------------ per-sample gradients

    def records(self, slot: BatchSlot) -> Kept[Records | Linearisation]:
        """Recorded per-sample gradients; a linearisation where they would be too large to be materialised."""
        found = self._records.get(slot, None) or self._records.make(slot, None)
        return self.linearisation(slot) if found is None else found

    def recorded(
        self, slot: BatchSlot, draw: Draw | None, make: bool
    ) -> Kept[Records | tuple[BackwardPass, LossPoint]]:
        """The records at the true or drawn labels if kept or to be made, else the batch before its backward pass."""
        found = self._records.get(slot, draw)
        if found is None and make and self._cache.keeps:
            found = self._records.make(slot, draw)
        return self.backward_pass(slot) if found is None else found

    def backward_pass(self, slot: BatchSlot) -> Kept[tuple[BackwardPass, LossPoint]]:
        """The batch before its backward pass, and the loss there; never kept."""
        output, point = self._evaluated(slot, "backward")

        def rerun(batch: Any) -> Tensor:
            return self._evaluation(batch, "backward")[0]

        hooked = self._evaluation.hooked
        backward = BackwardPass(
            output, self._parameters, self._plans, rerun, slot.batch, slot.first, hooked
        )
        return Kept(BatchTotals.of(output, point), (backward, point))

    def totals(self, slot: BatchSlot) -> Kept[None]:
        """N, divisor and value alone, by one forward pass; nothing is linearised or kept."""
        output, point = self._evaluated(slot, "backward")
        return Kept(BatchTotals.of(output, point), None)

    def _evaluated(self, slot: BatchSlot, use: GraphUse) -> tuple[Tensor, LossPoint]:
        output, target = self._evaluation(slot.batch, use)
        return output, self._loss.at(output.detach(), target, slot.number)
