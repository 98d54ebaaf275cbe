"""The empirical risk as operators see it: checked once, iterated batch by batch, scaled in one place.

One file because it composes the other files of this folder, and its signature and docstrings are half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from curvext.cache import Cache
from curvext.data import Batches, tensors
from curvext.evaluation.evaluation import Evaluation
from curvext.evaluation.isolation import lock_of
from curvext.fingerprints import sample_hashes, strided_parts
from curvext.losses import LossPoint, output_loss
from curvext.per_sample.backward_pass import BackwardPass
from curvext.per_sample.recorded import Records
from curvext.problem import arguments
from curvext.problem.consistency import DataCheck, PassRecord
from curvext.problem.explained import Explanation
from curvext.problem.freshness import Change, Freshness, check_finite
from curvext.problem.kept import KeptBatches
from curvext.problem.kept_records import Draw
from curvext.problem.passes import one_pass
from curvext.problem.ranks import Ranks
from curvext.problem.slots import BatchSlot, Kept
from curvext.problem.totals import BatchTotals, Scales, Totals
from curvext.processes import (
    Group,
    Saying,
    check_loader,
    collective,
    held_parameters,
    unwrapped,
)
from curvext.processes.words import digest
from curvext.products.linearisation import Linearisation, Linearised, SecondDerivatives
from curvext.space import ParameterSpace, Selection

Derived = TypeVar("Derived")
Item = TypeVar("Item")
#: what a pass gives: one item for each batch that has samples
Pass = AbstractContextManager[Iterator[Item]]
#: the path of a parameter on a rank without samples, where other ranks have them all
NOWHERE = "no sample here"


class Problem(Scales):
    """Model, loss and data of an empirical risk L(θ) = (1/N) Σ_n ℓ(f(x_n), y_n).

    Everything below works on unnormalised sums of this process's samples. An operator reads

        with problem.call(saying) as rounds:
            for _ in rounds:
                with problem.linearisations() as batches:
                    for at in batches: ...

    See :class:`curvext.EmpiricalRisk` for the arguments.
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
            #: where the parameters are: whole, or sharded and made whole for a call
            self.held = held_parameters(model, self.group)
        with self.group.guarded(), self.held.whole(self.group, "making a risk or operator"):
            self.space = ParameterSpace(model, params)
            self.space.here = self.held.here
            #: what :meth:`on` makes another problem of
            self._arguments: dict[str, Any] = {
                "loss": loss,
                "params": self.space.selection,  # an iterator is read by now
                "cache": cache,
                "forward": forward,
                "target": target,
                "reduction": reduction,
                "check_finite": check_finite,
                "progress": progress,
                "dtype": dtype,
            }
            chunk = arguments.checked_chunk(chunk_outputs)
            #: of vectors and of what is made of them
            self.dtype = arguments.checked_dtype(dtype, self.space.dtype)
            arguments.check_shift(model, loss)
            self.loss = output_loss(loss, reduction, self.space.parameters)
            self.check_finite = check_finite
            self._progress = progress
            self._model = model
            self._given_loss = loss
            self._batches = Batches(data, not self.group.alone, max_batches)
            self._cache = Cache(cache, self.space.device)
            self._evaluation = Evaluation(model, self.space, forward, target)
            self._compiler = arguments.checked_compiler(
                compile, chunk_outputs, self._evaluation, self.space
            )
            self._kept = KeptBatches(
                model,
                self._evaluation,
                self.space,
                self.loss,
                self._cache,
                self._compiler,
                chunk,
            )
            self._freshness = Freshness(
                self._evaluation, loss, self._batches, self._cache.keeps, self.held
            )
            #: the order of samples, and that they are those of earlier passes
            self.data_check = DataCheck()
            self.ranks = Ranks(self.group, self._evaluation, self.space, loss)
            self.ranks.renew(self.loss)
            #: how vectors are cut among the ranks where parameters are
            self.local_vectors = self.held.vectors(self.space.parameters)
            self._here: Totals | None = None  # of this rank
            self._totals: Totals | None = None  # of all ranks
            self._in_call = False
            if not self.group.alone:
                self.ranks.introduce(self._batches.likely_samples)

    def on(self, data: Any) -> Problem:
        """The same model, loss and parameters on other data."""
        return Problem(
            self._model, data=data, process_group=self.group.process_group, **self._arguments
        )

    # ------------------------------------------------------------------ all ranks together

    @property
    def totals(self) -> Totals:
        """Number of samples, divisor and unnormalised value of the last pass, of all ranks."""
        with self._alone():
            if self._totals is None:
                self.measure(Saying("totals"))
            assert self._totals is not None
            return self._totals

    def measure(self, saying: Saying, look: bool = False, linearise: bool = False) -> None:
        """A pass for the totals, where they are not known.

        Args:
            saying: what ranks compare.
            look: whether they must be those of the model as it is now.
            linearise: whether batches are linearised on the way, for passes that follow.
        """
        with self.call(saying) as rounds:
            for _ in rounds:
                if look and self._here is not None:
                    if self._cache.keeps:
                        self.refresh()
                    else:
                        self._here = None  # the pass looks
                if self._here is None:
                    with self.linearisations() if linearise else self._totalled() as batches:
                        for _ in batches:
                            pass

    @contextmanager
    def call(self, saying: Saying) -> Iterator[Iterator[None]]:
        """One call that all ranks make: ``for _ in rounds`` is this rank's part, with all of its passes.

        At the end of a round the ranks tell each other in one exchange which call they are in and how many samples
        they have, so an error on one is an error on all before anything large is sent. There is a second round only
        where indices of samples matter and the first exchange told where this rank's begin.

        Raises:
            RuntimeError: another rank raised.
            ValueError: the ranks do not make the same call, or no rank has a sample.
        """
        with self._alone(), self.group.guarded(), self.held.whole(self.group, saying.call):
            around, self._in_call = self._in_call, True
            try:
                yield self._rounds(saying)
            finally:
                self._in_call = around

    def _rounds(self, saying: Saying) -> Iterator[None]:
        known = False
        while not known:
            yield
            assert self._here is not None  # every call makes a pass
            self._totals, known = self.ranks.exchange(saying, self._here)
            known = known or not saying.by_index

    def _alone(self) -> AbstractContextManager[object]:
        """No other thread has the model meanwhile; ranks that are threads wait for each other, and so not here."""
        return lock_of(self._model) if self.group.alone else nullcontext()

    @collective
    def own_labels_ratio(self) -> float | None:
        """c with E[F_emp] = c F if the labels were drawn from the network, or None where there is no such number.

        1 where a datum's loss is −log p; for a mean over T positions or C binary outputs 1/T or 1/C, which F
        contains once and F_emp squared.
        """
        self.measure(Saying("own_labels_ratio"))
        totals = self.totals
        return self.loss.own_labels_ratio(totals.divisor / totals.samples)

    # ------------------------------------------------------------------ passes over the data

    def linearisations(self) -> Pass[Linearisation]:
        """Each batch ready for J v and Jᵀ u, kept or made anew."""
        return self._pass(self._kept.linearisation)

    def second_derivatives(self) -> Pass[SecondDerivatives]:
        """Each batch ready for H v and R v, kept or made anew."""
        return self._pass(self._kept.second_derivatives)

    def ggn_batches(self) -> Pass[Linearised]:
        """Each batch ready for G v, in chunks of outputs where that was asked for."""
        return self._pass(self._kept.ggn)

    def records(self) -> Pass[Records | Linearisation]:
        """The recorded per-sample gradients of each batch.

        A batch whose gradients would have to be materialised in large, because some parameter has no fast path,
        comes as a linearisation.
        """
        return self._pass(self._kept.records)

    def recorded(
        self, seed: int | None, make: bool
    ) -> Pass[Records | tuple[BackwardPass, LossPoint]]:
        """The recorded per-sample gradients of each batch where they are kept; else the batch before its backward pass.

        Args:
            seed: of labels that are drawn, the first draw for each datum; None for the true labels.
            make: whether records are made and kept where there are none, if the cache keeps anything.
        """
        draw = None if seed is None else Draw(seed, self.ranks.start)
        return self._pass(lambda slot: self._kept.recorded(slot, draw, make))

    def backward_passes(self) -> Pass[tuple[BackwardPass, LossPoint]]:
        """Each batch before its backward pass, and the loss there."""
        return self._pass(self._kept.backward_pass)

    def _totalled(self) -> Pass[None]:
        return self._pass(self._kept.totals)

    @contextmanager
    def _pass(self, item_of: Callable[[BatchSlot], Kept[Item]]) -> Iterator[Iterator[Item]]:
        """One pass over this rank's batches; the model is left as found, also after an error inside."""
        if not (self.group.alone or self._in_call):
            raise RuntimeError(
                "process_group: a pass outside of a call would be of this process's data alone; put it into `with "
                "problem.call(...)`"
            )
        with lock_of(self._model), self.held.whole(self.group, "a pass"):
            self.refresh()
            batches = self._iterate(item_of)
            try:
                yield batches
            finally:
                batches.close()

    def _iterate(self, item_of: Callable[[BatchSlot], Kept[Item]]) -> Generator[Item, None, None]:
        batches: Iterable[Any] = self._batches
        if self._progress:
            from tqdm.auto import tqdm

            batches = tqdm(
                batches, total=self._batches.count, unit="batch", desc="curvext", leave=False
            )
        record = PassRecord(self._batches.resident)
        found: list[BatchTotals] = []
        yield from one_pass(batches, self._evaluation, record, item_of, found)
        try:
            samples = sum([batch.samples for batch in found])
            self.data_check.end(record, samples, self.group.alone)
        except ValueError:
            self._forget()
            raise
        if self._here is None:
            self._here = Totals.of(found)

    # ------------------------------------------------------------------ freshness

    def refresh(self) -> None:
        """Forgets what was kept if the model, the loss or data in memory changed since."""
        with lock_of(self._model), self.held.whole(self.group, "a look"):
            change = self._freshness.look()
            if change is None and self._cache.keeps:
                return
            try:
                if change is not None:
                    self._follow(change)
                self._here = self._totals = None
                self.ranks.renew()
                check_finite(self.space)
            except BaseException:
                self._freshness.distrust()
                raise

    def _follow(self, change: Change) -> None:
        """Takes parameters and loss as they stand now."""
        self._cache.clear()
        self.data_check.forget()
        if change.parameters:
            self.space.renew(self._model)
        else:
            self.space.check_form()
        if change.loss:  # closed forms copy numbers of the loss
            self.loss = output_loss(
                self._given_loss, self._arguments["reduction"], self.space.parameters
            )
            self.ranks.renew(self.loss)
        self._kept.renew(self.loss, change.model)

    def _forget(self) -> None:
        self._cache.clear()
        self.data_check.forget()
        self._here = self._totals = None
        self.ranks.renew()
        self._freshness.forget()

    def only_once(self) -> None:
        """One call follows, and then none: nothing is compared with an earlier state."""
        self._freshness.only_once()

    def derived(self, slot: Hashable, make: Callable[[], Derived], saying: Saying) -> Derived:
        """What ``make`` makes of the model as it is, kept in ``slot`` until that changes, where the budget allows.

        All ranks make it anew where one of them has not kept it; ``saying`` is compared before.
        """
        with self._alone(), self.group.guarded(), self.held.whole(self.group, saying.call):
            self.refresh()
            kept: Derived | None = self._cache.get(slot, 0)
            if not self.ranks.all_have(saying, kept is not None):
                kept = None
            if kept is None:
                kept = make()
                self._cache.put(slot, 0, kept)
            return kept

    @collective
    def identity(self) -> dict[str, Any]:
        """Hashes of model, loss and data by topic, the same on all ranks, for a run that is to go on elsewhere."""
        with self._alone(), self.held.whole(self.group, "what a run is of"):
            samples, content, shapes, plain = 0, 0, [], True
            for batch in self._batches:
                inside = strided_parts(tensors(batch))
                if not self._evaluation.is_empty(batch, inside):
                    content += sample_hashes(inside)[0]
                    shapes.append([tuple(t.shape) for t in inside])
                    count = shapes[-1][0][0] if shapes[-1] and shapes[-1][0] else 1
                    samples += count
                    plain &= all(t.layout is torch.strided for t in tensors(batch))
                    plain &= all(shape[:1] == (count,) for shape in shapes[-1])
            mine = (samples, content, shapes, plain)
            found = self.group.objects(mine)
            cuts = [cut for _, _, cut, _ in found]
            # the contents are a sum over samples, the same for every cut unless a cut decides the samples' shapes
            forms = {str([shape[1:] for shape in batch]) for cut in cuts for batch in cut}
            one_form = len(forms) == 1 and all(plain for *_, plain in found)
            data = {
                "samples": sum(count for count, *_ in found),
                "content": sum(hashed for _, hashed, _, _ in found) % 2**63,
                "batches": digest(cuts),
                "shape": digest(sorted(forms)) if one_form else 0,
            }
            return {**self.ranks.identity(), "the data": data}

    # ------------------------------------------------------------------ words

    def __repr__(self) -> str:
        loss, space = type(self.loss).__name__, self.space
        return f"{type(self).__name__}(P={space.size}, {space.dtype}, {space.device}, {loss} {self.loss.reduction})"

    @collective
    def explain(self) -> str:
        """Which parameters take which path and what is kept, as text."""
        return str(
            Explanation(
                self.space,
                self.loss,
                self._cache,
                self.products_by(),
                self._evaluation.names_with_backward_hooks(),
                self.paths(),
                self.ranks,
                self.held,
            )
        )

    def products_by(self) -> str:
        """How products with H, R and G are computed, in words."""
        return "by the kept graph" if self._compiler is None else f"compiled, {self._compiler}"

    def paths(self) -> dict[str, list[str]]:
        """By parameter the paths that its per-sample gradients take, over all batches."""
        found: dict[int, set[str]] = {}
        with self.call(Saying("paths")) as rounds:
            for _ in rounds:
                with self.backward_passes() as batches:
                    for backward, _ in batches:
                        for number, path in backward.paths().items():
                            found.setdefault(number, set()).add(path)
        return {name: sorted(found.get(i, {NOWHERE})) for i, name in enumerate(self.space.names)}
