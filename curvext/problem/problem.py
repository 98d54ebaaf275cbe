"""The empirical risk as operators see it: checked once, one scale factor, one cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from curvext.arguments import as_integer
from curvext.attributes import Marks
from curvext.cache import Cache
from curvext.contents import contents, fingerprint, gathered, stored
from curvext.data import Batches, Seen, Watch, mapped, tensors
from curvext.evaluation.evaluation import Forward
from curvext.evaluation.hooks import same
from curvext.evaluation.isolation import lock_of
from curvext.finite import is_finite
from curvext.losses import LossPoint, output_loss
from curvext.per_sample.backward_pass import Tape
from curvext.per_sample.plan_cache import plan_cache_of
from curvext.per_sample.recorded import Records
from curvext.processes import Group, Saying, Words, check_loader, collective, unwrapped
from curvext.processes.words import SIZE as WORDS
from curvext.processes.words import digest
from curvext.products.compiled import CompiledHessian, CompiledJacobian, Compiler
from curvext.products.kept_graph import KeptGraph, Linearisation, Linearised, SecondDerivatives
from curvext.products.lm_head import LMHeadLinearisation
from curvext.space import ParameterSpace, Selection, dtype_of_sums
from curvext.torch_internals.modules import modules_of, tensors_of
from curvext.torch_internals.tensors import version_of


@dataclass(frozen=True)
class Totals:
    """What one pass over all batches, of all ranks or of this one, adds up to, unnormalised."""

    samples: int
    divisor: float
    value: float


@dataclass(frozen=True)
class BatchTotals:
    """What one batch adds to the totals; the value stays on the device, as reading it would wait."""

    samples: int
    divisor: float
    value: Tensor

    @classmethod
    def of(cls, output: Tensor, point: LossPoint) -> BatchTotals:
        return cls(int(output.shape[0]), point.denominator, point.value)


Answer = TypeVar("Answer")
Compiled = TypeVar("Compiled", CompiledJacobian, CompiledHessian)
Derived = TypeVar("Derived")
Item = TypeVar("Item", KeptGraph, CompiledJacobian, CompiledHessian, LMHeadLinearisation, Records)


@dataclass(frozen=True)
class _Kept(Generic[Item]):
    """A linearisation or records, with the batch's share."""

    share: BatchTotals
    item: Item

    def nbytes(self) -> int:
        return self.item.nbytes()


@dataclass(frozen=True)
class BatchSlot:
    """A batch and its place in the data."""

    number: int
    first: int  # index of its first datum
    batch: Any
    key: int


#: what :meth:`Problem.explain` says of what its words cost
_COSTS = {
    "by indices": "read from the indices of each batch, without a pass",
    "by backward passes": "asked on each batch by backward passes without weight gradients: about half a gradient",
    "general": "one backward pass for each sample",
}
#: per-sample gradients that have to be written out are kept up to this many elements for each batch
_WRITTEN_OUT_LIMIT = 64 << 20


class Problem:
    """Model, loss and data of an empirical risk L(θ) = (1/N) Σ_n ℓ(f(x_n), y_n).

    Everything below works on unnormalised sums; this class alone knows N and the divisor of the
    mean, and alone decides what is kept. See :class:`curvext.EmpiricalRisk` for the arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        *,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        target: Callable[[Any], Any] | None = None,
        reduction: str | None = None,
        check_finite: bool = False,
        progress: bool = False,
        chunk_outputs: int | None = None,
        compile: bool | str = False,
        dtype: torch.dtype | None = None,
        process_group: Any = None,
        max_batches: int | None = None,
    ) -> None:
        self.group = Group(process_group)
        with self.group.guarded():
            check_loader(data, self.group)
            model = unwrapped(model, self.group)
            #: what :meth:`on` makes another problem of
            self._arguments: dict[str, Any] = {
                "loss": loss,
                "cache": cache,
                "forward": forward,
                "target": target,
                "reduction": reduction,
                "check_finite": check_finite,
                "progress": progress,
                "dtype": dtype,
            }
            self.space = ParameterSpace(model, params)
            self._arguments["params"] = self.space.selection  # an iterator is read by now
            #: of vectors and of what is made of them
            self.dtype = _checked_dtype(dtype, self.space.dtype)
            self.loss = output_loss(loss, reduction, self.space.parameters)
            self.check_finite = check_finite
            self._progress = progress
            self._chunk_outputs = _checked_chunk(chunk_outputs)
            self._model = model
            self._given_loss = loss
            self._batches = Batches(data, not self.group.alone, max_batches)
            self._cache = Cache(cache, self.space.device)
            self._forward = Forward(model, self.space, forward, target)
            self._leaves = list(self.space.parameters.values())
            self._compiler = self._checked_compiler(compile)
            self._plans = plan_cache_of(model)
            self._members = self._forward.members
            self._state: tuple[object, ...] | None = None
            #: of the model, and of the loss: all that they go by beside parameters and buffers
            self._attributes: tuple[object, object] | None = None
            self._here: Totals | None = None  # of this rank
            self._totals: Totals | None = None  # of all ranks
            self._together = False
            self._digests: dict[str, int] | None = None
            self._loss_digest = digest(_description(loss, self.loss.reduction))
            self._by_linearisation = False
            self.watch = Watch()
            #: how many samples each rank has, and the index of this rank's first one, as last heard
            self.shares: tuple[int, ...] = (0,)
            self.start = 0
            if not self.group.alone:
                self._introduce()

    def on(self, data: Any) -> Problem:
        """The same model, loss and parameters on other data."""
        return Problem(
            self._model, data=data, process_group=self.group.process_group, **self._arguments
        )

    # ------------------------------------------------------------------ scale

    # A pass checks that nothing changed, and a scale belongs to the pass before it: it does not look again.

    @property
    def totals(self) -> Totals:
        """Number of samples, divisor and unnormalised value, as the last pass found them, of all ranks."""
        with self._alone():
            if self._totals is None:
                self.together(Saying("totals"), self._measure)
            assert self._totals is not None
            return self._totals

    def _alone(self) -> AbstractContextManager[object]:
        """No other thread has the model meanwhile; ranks that are threads wait for each other, and so not here."""
        return lock_of(self._model) if self.group.alone else nullcontext()

    def mean_scale(self) -> float:
        """The factor on sums of per-sample curvature or gradients: 1/divisor for "mean", 1 for "sum"."""
        if self.loss.reduction == "sum":
            return 1.0
        divisor = self.totals.divisor
        if divisor == 0:
            raise ValueError("data: every position is ignored or has weight 0, so the mean is 0/0")
        return 1.0 / divisor

    def sample_scale(self) -> float:
        """c with g_n = c r_n, r_n the gradient of sample n's unnormalised loss: N/divisor, or 1."""
        return 1.0 if self.loss.reduction == "sum" else self.totals.samples * self.mean_scale()

    def outer_scale(self) -> float:
        """c with F_emp = c Σ_n r_n r_nᵀ: N/divisor² for "mean", 1 for "sum"."""
        if self.loss.reduction == "sum":
            return 1.0
        return self.totals.samples * self.mean_scale() ** 2

    @collective
    def own_labels_ratio(self) -> float | None:
        """c with E[F_emp] = c F if the labels were drawn from the network, or None where there is no such number.

        1 where a datum's loss is −log p; for a mean over T positions or C binary outputs 1/T or 1/C, which F
        carries once and F_emp squared.
        """
        self.together(Saying("own_labels_ratio"), self._measure)
        totals = self.totals
        return self.loss.own_labels_ratio(totals.divisor / totals.samples)

    def derived(self, slot: Hashable, make: Callable[[], Derived]) -> Derived:
        """What ``make`` makes of the model as it is, kept in ``slot`` until that changes, where the budget allows."""
        self.refresh()
        kept: Derived | None = self._cache.get(slot, 0)
        if kept is None:
            kept = make()
            self._cache.offer(slot, 0, kept)
        return kept

    # ------------------------------------------------------------------ all ranks together

    def together(self, saying: Saying, local: Callable[[], Answer]) -> Answer:
        """What ``local`` gives, passes over this rank's data among it, once all ranks have done the same.

        Every pass is made in here. The ranks then say in one exchange what they are in, and how many samples they
        have: so each error is known to all before anything large is sent.

        Raises:
            RuntimeError: another rank raised.
            ValueError: the ranks do not call the same, or no rank has a sample.
        """
        with self._alone():
            return self._together_with_others(saying, local)

    def _together_with_others(self, saying: Saying, local: Callable[[], Answer]) -> Answer:
        while True:
            around, self._together = self._together, True
            try:
                with self.group.guarded():
                    answer = local()
                    heard = self._exchange(saying)
            finally:
                self._together = around
            if self._heard(heard) or not saying.by_index:
                return answer

    def _exchange(self, saying: Saying) -> list[Words]:
        here = self._here
        assert here is not None  # every call makes a pass
        totals = dict(samples=here.samples, divisor=here.divisor, value=here.value)
        count = 0.0 if saying.count is None else saying.count()
        if self.group.alone:
            return [Words(saying.call, count=count, **totals)]  # type: ignore[arg-type]
        return self.group.exchange(
            Words.of_call(
                saying.call,
                saying.vectors,
                digests=self._said(),
                start=self.start,
                count=count,
                **totals,
            )
        )

    def _heard(self, heard: list[Words]) -> bool:
        """Takes the totals of all ranks; whether all knew the index of their first datum."""
        self._totals = Totals(
            sum(w.samples for w in heard),
            sum(w.divisor for w in heard),
            sum(w.value for w in heard),
        )
        self.counted = sum(w.count for w in heard)
        knew = self._seat([w.samples for w in heard], [w.start for w in heard])
        if self._totals.samples == 0:
            raise ValueError("data: no batch of any rank has a sample; at least one is needed")
        return knew

    def _seat(self, shares: list[int], starts: list[int]) -> bool:
        """Takes the ranks' numbers of samples; whether ``starts`` are where each rank's begin."""
        right = [sum(shares[:rank]) for rank in range(len(shares))]
        self.shares, self.start = tuple(shares), right[self.group.rank]
        return starts == right

    def _introduce(self) -> None:
        """The first exchange: model, loss and selection of all ranks are the same, and some rank has a batch."""
        self._forward.look()
        likely = self._batches.likely_samples
        heard = self.group.exchange(
            Words.of_call(
                "making a risk or operator",
                digests=self._said(),
                samples=likely or 0,
                count=float(likely != 0),
            )
        )
        if not any(w.count for w in heard):
            raise ValueError("data: empty on every rank; at least one sample is needed")
        self._seat([w.samples for w in heard], [])

    def _said(self) -> dict[str, int]:
        """What of this rank's must be as on all others, by topic; made anew where something changed."""
        if self._digests is None:
            members, space = self._forward.members, self.space
            kind = space.device.type
            self._digests = {
                "params": digest((space.names, list(map(tuple, space.shapes.values())))),
                "parameters": fingerprint(members.parameters),
                "buffers": fingerprint(members.buffers),
                "modes": digest([m.training for m in members.modules]),
                "loss": digest((self._loss_digest, fingerprint(_tensors_of(self._given_loss)))),
                "settings": digest(
                    torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
                ),
            }
        return self._digests

    def _measure(self) -> None:
        """A pass over this rank's data, where its totals are not known."""
        if self._here is None:
            self.visit(lambda _: None)

    # ------------------------------------------------------------------ passes over the data

    def visit(self, visitor: Callable[[Linearisation], None]) -> None:
        """Calls ``visitor`` with the linearisation of each batch, kept or made anew.

        Raises:
            ValueError: the data is empty or not what it was in an earlier pass.
        """
        self._visit(self._linearisation, visitor)

    def visit_twice(self, visitor: Callable[[SecondDerivatives], None]) -> None:
        """Calls ``visitor`` with the second derivatives of each batch, kept or made anew."""
        self._visit(self._second_derivatives, visitor)

    def visit_for_ggn(self, visitor: Callable[[Linearised], None]) -> None:
        """Calls ``visitor`` with each batch ready for products with G, in chunks of outputs where asked for."""
        if self._chunk_outputs is None:
            self.visit(visitor)
            return
        self._visit(self._head_linearisation, visitor)

    def _visit(
        self, kept_of: Callable[[BatchSlot], _Kept[Any]], visitor: Callable[[Any], None]
    ) -> None:
        """Calls ``visitor`` with what is kept, or made, of each batch."""

        def one(slot: BatchSlot) -> BatchTotals:
            kept = kept_of(slot)
            visitor(kept.item)
            return kept.share

        self._pass(one)

    def visit_tapes(self, visitor: Callable[[Tape, LossPoint], None]) -> None:
        """Calls ``visitor`` with the tape of each batch and the loss there."""

        def one(slot: BatchSlot) -> BatchTotals:
            share, tape, point = self._tape(slot)
            visitor(tape, point)
            return share

        self._pass(one)

    def visit_records(self, visitor: Callable[[Records | Linearisation, int], None]) -> None:
        """Calls ``visitor`` with the recorded per-sample gradients of each batch and the batch's number.

        Where gradients would have to be written out in large, because some parameter has no fast
        path, the batch comes as a linearisation instead.
        """

        def one(slot: BatchSlot) -> BatchTotals:
            kept = self._records(slot)
            visitor(kept.item, slot.number)
            return kept.share

        self._pass(one)

    def _linearisation(self, slot: BatchSlot) -> _Kept[KeptGraph] | _Kept[CompiledJacobian]:
        compiler = self._compiler
        if compiler is None:
            return self._graph(slot, twice=False)
        return self._compiled(
            (CompiledJacobian, slot.number),
            slot,
            lambda: compiler.jacobian(slot.batch, self.loss, slot.first),
        )

    def _second_derivatives(self, slot: BatchSlot) -> _Kept[KeptGraph] | _Kept[CompiledHessian]:
        compiler = self._compiler
        if compiler is None:
            return self._graph(slot, twice=True)
        return self._compiled(
            (CompiledHessian, slot.number),
            slot,
            lambda: compiler.second_derivatives(slot.batch, self.loss),
        )

    def _compiled(
        self, place: Hashable, slot: BatchSlot, make: Callable[[], tuple[Tensor, Compiled]]
    ) -> _Kept[Compiled]:
        kept: _Kept[Compiled] | None = self._cache.get(place, slot.key)
        if kept is None:
            output, at = make()
            kept = _Kept(BatchTotals.of(output, at.point), at)
            at.kept = self._cache.offer(place, slot.key, kept)
        return kept

    def _graph(self, slot: BatchSlot, twice: bool) -> _Kept[KeptGraph]:
        once, for_twice = ((KeptGraph, order, slot.number) for order in (1, 2))
        kept: _Kept[KeptGraph] | None = self._cache.get(for_twice, slot.key)
        if kept is not None:  # it serves for first derivatives too
            return kept
        kept = self._cache.get(once, slot.key)
        if kept is not None and not twice:
            return kept
        if kept is None or not kept.item.twice_differentiable:
            output, target = self._forward(slot.batch, "twice" if twice else "linearised")
            point = self.loss.at(output.detach(), target)
            hooked = self._forward.hooked
            at = KeptGraph(output, point, self._leaves, slot.first, hooked=hooked)
            if hooked and twice:
                at = self._without_idle_hooks(at, slot)
            kept = _Kept(BatchTotals.of(output, point), at)
        if twice:
            kept.item.keep_gradient()
            self._cache.drop(once)
        kept.item.kept = self._cache.offer(for_twice if twice else once, slot.key, kept)
        return kept

    def _without_idle_hooks(self, at: KeptGraph, slot: BatchSlot) -> KeptGraph:
        """The same batch without hooks on tensors, if they leave its gradient as it is; else as it came."""
        output = self._forward.muted(slot.batch)
        muted = KeptGraph(output, at.point, self._leaves, slot.first)
        if self._forward.hooked or not same(
            at.vjp(at.point.residual), muted.vjp(at.point.residual)
        ):
            return at
        return muted

    def _head_linearisation(self, slot: BatchSlot) -> _Kept[LMHeadLinearisation]:
        place = (LMHeadLinearisation, slot.number)
        kept: _Kept[LMHeadLinearisation] | None = self._cache.get(place, slot.key)
        if kept is None:
            assert self._chunk_outputs is not None
            output, target = self._forward(slot.batch, "linearised")
            if self._forward.hooked:
                raise ValueError(
                    "chunk_outputs: the forward pass puts hooks on tensors, which products in chunks would go past; "
                    "remove them, or leave chunk_outputs=None"
                )
            point = self.loss.at(output.detach(), target)
            at = LMHeadLinearisation(output, point, self._leaves, self._chunk_outputs)
            kept = _Kept(BatchTotals.of(output, point), at)
            at.kept = self._cache.offer(place, slot.key, kept)
        return kept

    def _records(
        self, slot: BatchSlot
    ) -> _Kept[KeptGraph] | _Kept[CompiledJacobian] | _Kept[Records]:
        kept: _Kept[Records] | None = self._cache.get((Records, slot.number), slot.key)
        if kept is None and self._by_linearisation:
            return self._linearisation(slot)
        if kept is None:
            share, tape, point = self._tape(slot)
            if tape.written_out(summands=True) > _WRITTEN_OUT_LIMIT:
                self._by_linearisation = True
                return self._linearisation(slot)
            records = Records(tape.samples, self.space)
            tape.play(records, point.residual_by_sample, summands=True)
            kept = _Kept(share, records)
            self._cache.offer((Records, slot.number), slot.key, kept)
        return kept

    def _tape(self, slot: BatchSlot) -> tuple[BatchTotals, Tape, LossPoint]:
        output, target = self._forward(slot.batch, "backward")
        point = self.loss.at(output.detach(), target)

        def rerun(batch: Any) -> Tensor:
            return self._forward(batch, "backward")[0]

        hooked = self._forward.hooked
        tape = Tape(output, self._leaves, self._plans, rerun, slot.batch, slot.first, hooked)
        return BatchTotals.of(output, point), tape, point

    def _pass(self, one: Callable[[BatchSlot], BatchTotals]) -> None:
        """One pass over all batches that are not empty, inside the borrowed model, which one thread has at a time."""
        if not (self.group.alone or self._together):
            raise NotImplementedError(
                "process_group: there is no rule yet by which this is that of the data of several processes; make a "
                "risk without process_group= for that of this process's data"
            )
        with lock_of(self._model):
            self._locked_pass(one)

    def _locked_pass(self, one: Callable[[BatchSlot], BatchTotals]) -> None:
        self.refresh()
        shares: list[BatchTotals] = []
        seen = Seen()
        for number, batch in enumerate(self._shown(self._batches)):
            inside = stored(tensors(batch))
            if self._forward.is_empty(batch, inside):
                continue
            # a tensor of inference mode cannot be saved for a backward pass
            if any(t.is_inference() for t in inside):
                with torch.inference_mode(False):
                    batch = mapped(batch, torch.clone)
                inside = stored(tensors(batch))
            key = _identity(inside) if self._batches.resident else seen.key_of(inside)
            with self._forward.isolated():
                first = sum(s.samples for s in shares)
                self.loss.batch_number = number
                shares.append(one(BatchSlot(number, first, batch, key)))
        try:
            self.watch.end(seen, sum(s.samples for s in shares), self.group.alone)
        except ValueError:
            self._forget()
            raise
        if self._here is None:
            self._here = Totals(
                sum(s.samples for s in shares),
                sum(s.divisor for s in shares),
                float(sum(s.value for s in shares)),
            )

    def _shown(self, batches: Batches) -> Iterable[Any]:
        """The batches, behind a progress bar where one was asked for."""
        if not self._progress:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, total=batches.count, unit="batch", desc="curvext", leave=False)

    # ------------------------------------------------------------------ freshness

    def refresh(self) -> None:
        """Forgets what was kept if the model, the loss or resident data changed since."""
        with lock_of(self._model):
            self._refresh()

    def _refresh(self) -> None:
        state, attributes = self._current_state()
        if state != self._state:
            self._forget()
            self._renew(attributes)
        elif self._cache.keeps:
            return
        self._here = self._totals = self._digests = None
        if not self._finite():
            for name, p in self.space.parameters.items():
                if not is_finite(p):
                    raise ValueError(f"params: {name!r} contains nan or inf")
        self._state = state

    def _finite(self) -> bool:
        """Whether all parameters are, in few looks; False may be an overflow of the squares."""
        if self.space.device.type == "cuda":  # every look waits for the device
            return is_finite(torch.nn.utils.get_total_norm([p.detach() for p in self._leaves]))
        return all(is_finite(t) for t in gathered(self._leaves))

    def _current_state(self) -> tuple[tuple[object, ...], tuple[object, object]]:
        """All that answers depend on, and of it what is neither parameter, buffer nor batch."""
        members = self._forward.look()
        loss = self._arguments["loss"]
        loss_tensors = _tensors_of(loss)
        held = [*members.parameters, *members.buffers, *loss_tensors]
        parts = stored(held)  # those of a sparse tensor are other objects each time
        state: list[object] = [(id(m), m.training) for m in members.modules]
        state += [(id(t), version_of(t)) for t in held]
        state += [t.data_ptr() for t in parts]
        kind = self.space.device.type
        casts = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        state.append(casts or self._forward.casts)  # within a pass, autocast is switched off
        marks = Marks({id(t) for t in held})
        attributes = (
            self._forward.attributes(marks),
            _marks_of_loss(marks, loss),
        )
        state += attributes
        if self._cache.keeps:
            parts += [t for t in marks.tensors if _is_plain(t)]
            # p.data.copy_() and fused optimizers pass by the version counter; on CUDA the device is waited for once
            state += contents(parts)
        if self._batches.resident:
            state += [_identity(stored(tensors(batch))) for batch in self._batches]
        return tuple(state), attributes

    def _renew(self, attributes: tuple[object, object]) -> None:
        """Takes modules, parameters and loss as they stand now, where they are not those of before."""
        before, self._members = self._members, self._forward.members
        if [id(p) for p in before.parameters] == [id(p) for p in self._members.parameters]:
            self.space.check_form()
        else:
            self.space.renew(self._model)
            self._leaves[:] = self.space.parameters.values()
        had, self._attributes = self._attributes, attributes
        others = [id(m) for m in before.modules] != [id(m) for m in self._members.modules]
        if others or (had is not None and had[0] != attributes[0]):
            self._forward.rebuilt()
            if self._compiler is not None:
                self._compiler.rebuilt()
        if had is not None and had[1] != attributes[1]:  # closed forms copy what a loss goes by
            self.loss = output_loss(
                self._arguments["loss"], self._arguments["reduction"], self.space.parameters
            )
            self._loss_digest = digest(_description(self._given_loss, self.loss.reduction))

    def _forget(self) -> None:
        self._cache.clear()
        self._here = self._totals = self._digests = None
        self._state = None
        self.watch.forget()

    def _checked_compiler(self, compile: object) -> Compiler | None:
        if compile is False:
            return None
        if self._chunk_outputs is not None:
            raise ValueError(
                "compile: does not go together with chunk_outputs, whose product is made of chunks; leave one of them"
            )
        backend = "inductor" if compile is True else compile
        if not isinstance(backend, str) or backend not in torch.compiler.list_backends(None):
            raise ValueError(
                f"compile: expected True, False or a backend of torch.compile, got {compile!r}"
            )
        return Compiler(self._forward, self._leaves, backend)

    # ------------------------------------------------------------------ words

    def __repr__(self) -> str:
        loss, space = type(self.loss).__name__, self.space
        return f"{type(self).__name__}(P={space.size}, {space.dtype}, {space.device}, {loss} {self.loss.reduction})"

    @collective
    def explain(self) -> str:
        """Which parameters take which path and what is kept, as text."""
        lines = [
            f"{len(self.space.names)} parameters, P = {self.space.size}, {self.space.dtype}, {self.space.device}",
            f"loss: {type(self.loss).__name__} ({self.loss.reduction})",
            f"products: {self.products_by()}",
            f"kept: {len(self._cache)} linearisations, records and factors, {self._cache.nbytes / 2**20:.1f} MiB",
        ]
        hooked = self._forward.with_backward_hooks()
        if hooked:
            lines.append(f"set aside in all passes: backward hooks of {', '.join(hooked)}")
        paths = self.paths()
        lines += self._processes()
        lines.append(
            "empirical-Fisher diagonal and per-sample norms, by parameter (how samples are proven apart):"
        )
        width = max(map(len, paths))
        lines += [f"  {name:<{width}}  {' or '.join(path)}" for name, path in paths.items()]
        every = " ".join(path for found in paths.values() for path in found)
        lines += [f"{word}: {cost}" for word, cost in _COSTS.items() if word in every]
        return "\n".join(lines)

    def products_by(self) -> str:
        """How products with H, R and G are computed, in words."""
        return "by the kept graph" if self._compiler is None else f"compiled, {self._compiler}"

    def paths(self) -> dict[str, list[str]]:
        """By parameter the paths that its per-sample gradients take, over all batches."""
        paths: dict[int, set[str]] = {}

        def note(tape: Tape, point: LossPoint) -> None:
            for number, path in tape.paths().items():
                paths.setdefault(number, set()).add(path)

        self.together(Saying("paths"), lambda: self.visit_tapes(note))
        nowhere = {"no sample here"}  # where other ranks have them all
        return {name: sorted(paths.get(i, nowhere)) for i, name in enumerate(self.space.names)}

    def _processes(self) -> list[str]:
        """Lines on the group: who has how much, and what a product sends."""
        if not self.group.given:
            return []
        held = "parameters are whole on each rank"
        if self.group.alone:
            return [f"processes: {self.group}; nothing is sent; {held}"]
        size = self.space.size * dtype_of_sums(self.space.dtype).itemsize / 2**20
        return [
            f"processes: {self.group}, {list(self.shares)} samples; {held}",
            f"sent for each product: one exchange of words, {WORDS} bytes from each rank, and one sum of "
            f"{size:.1f} MiB for each column",
        ]

    def __getstate__(self) -> dict[str, Any]:
        # for a copy or a pickle: plans belong to a model, and the state to its tensors
        return {**vars(self), "_plans": None, "_state": None, "_attributes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plans = plan_cache_of(self._model)


def _checked_dtype(dtype: torch.dtype | None, own: torch.dtype) -> torch.dtype:
    allowed = {own, dtype_of_sums(own)}
    if dtype is None:
        return own
    if dtype not in allowed:
        wanted = " or ".join(sorted(map(str, allowed)))
        raise ValueError(
            f"dtype: expected None or {wanted} for parameters in {own}, got {dtype!r}: nothing is computed in more"
        )
    return dtype


def _checked_chunk(chunk: int | None) -> int | None:
    if chunk is None:
        return None
    return as_integer("chunk_outputs", chunk, 1, why="or None for whole outputs")


def _identity(inside: list[Tensor]) -> int:
    """Changes when the tensors of a resident batch are replaced or written to."""
    return hash(tuple((t.data_ptr(), version_of(t), t.stride(), t.shape) for t in inside))


def _tensors_of(loss: nn.Module | Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """What a loss goes by: weights of classes, say."""
    return tensors_of(loss) if isinstance(loss, nn.Module) else []


def _description(loss: nn.Module | Callable[[Tensor, Tensor], Tensor], reduction: str) -> list[Any]:
    """What kind of loss it is and the numbers it goes by, the same in every process."""
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    plain = (bool, int, float, str, type(None))
    numbers = {
        k: v
        for k, v in getattr(loss, "__dict__", {}).items()
        if isinstance(v, plain) and k != "training"
    }
    return [kind.__module__, kind.__qualname__, reduction, sorted(numbers.items())]


def _marks_of_loss(marks: Marks, loss: nn.Module | Callable[[Tensor, Tensor], Tensor]) -> object:
    """What a loss goes by beside parameters and buffers: label_smoothing, say."""
    if isinstance(loss, nn.Module):
        return marks.of_modules(modules_of(loss)), [id(t) for t in tensors_of(loss)]
    return marks.of(loss)


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor among the attributes can be read as parameters are."""
    return type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not t.is_meta
