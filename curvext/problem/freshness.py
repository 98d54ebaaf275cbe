"""Detects changes of the model, the loss and the data before each pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvext.attributes import Marks
from curvext.data import Batches, tensors
from curvext.evaluation.evaluation import Evaluation
from curvext.fingerprints import fingerprints, strided_parts
from curvext.finite import all_finite, is_finite
from curvext.problem.consistency import identity_of
from curvext.processes import HeldParameters
from curvext.reading import Reading
from curvext.space import ParameterSpace
from curvext.torch_internals.modules import Members, modules_of, tensors_of
from curvext.torch_internals.tensors import version_of

#: a loss as the user gives it
Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Change:
    """What has changed since the last check.

    Args:
        parameters: parameters were replaced by other tensors.
        model: modules were replaced, or their attributes, hooks or ``forward`` changed.
        loss: attributes of the loss changed.
    """

    parameters: bool
    model: bool
    loss: bool


class Freshness:
    """Compares the model, the loss and data in memory with their state at the last check.

    It compares modules and their modes; parameters, buffers and tensors of the loss by identity, version, address and
    fingerprint; attributes, hooks and ``forward`` of modules and of the loss; and autocast. Fingerprints are computed
    only if something is kept; they catch writes to ``p.data`` and fused optimizers, which leave versions unchanged.

    Args:
        evaluation: the model.
        loss: the user's.
        batches: the data.
        keeps: whether anything is kept between passes.
        held: where the parameters are; changes of shards are seen by it.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        loss: Loss,
        batches: Batches,
        keeps: bool,
        held: HeldParameters,
    ) -> None:
        self._evaluation = evaluation
        self._loss = loss
        self._batches = batches
        self._keeps = keeps
        self._held = held
        self._once = False
        #: what native code read at the last check, in which nothing had changed since the state
        self._reading: Reading | None = None
        self._state: list[object] | None = None
        self._members: Members = evaluation.members
        self._of_model: object = None
        self._of_loss: object = None

    def only_once(self) -> None:
        """One call follows, and then none: the checks look at nothing, and the first reports that nothing is known."""
        self._once = True

    def forget(self) -> None:
        """Makes the next check report a change; nothing of the state before is held."""
        self._state = self._reading = None

    def distrust(self) -> None:
        """Makes the next check report that everything changed, after a change that could not be followed."""
        self._state, self._of_model, self._of_loss = None, object(), object()

    def __getstate__(self) -> dict[str, Any]:
        # a copy or a pickle holds other tensors
        nothing = dict.fromkeys(("_state", "_reading", "_of_model", "_of_loss"))
        return {**vars(self), **nothing}

    def look(self) -> Change | None:
        """What changed since the last check, or None; the new state becomes the reference."""
        if self._once:
            first, self._state = self._state is None, []
            return Change(False, False, False) if first else None
        reading, casts = self._native_reading(), self._casts()
        if (
            self._state is not None
            and casts == self._state[-1]
            and reading is not None
            and self._reading is not None
            and reading.is_same(self._reading)
        ):
            return None
        state, of_model, of_loss = self._read(casts)
        self._reading = reading
        if state == self._state:
            return None
        before, now = self._members, self._evaluation.members
        known = self._of_model is not None
        change = Change(
            [id(p) for p in before.parameters] != [id(p) for p in now.parameters],
            [id(m) for m in before.modules] != [id(m) for m in now.modules]
            or (known and self._of_model != of_model),
            known and self._of_loss != of_loss,
        )
        self._state, self._members = state, now
        self._of_model, self._of_loss = of_model, of_loss
        return change

    def _casts(self) -> object:
        """To what autocast casts, or False; within a pass it is switched off."""
        kind = self._evaluation.space.device.type
        casts = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        return casts or self._evaluation.autocast_dtype

    def _native_reading(self) -> Reading | None:
        """The state by one call of native code, which knows no functions of the user's, or None."""
        if not self._evaluation.by_convention or not isinstance(self._loss, nn.Module):
            return None
        if self._held.state is not None or self._held.stand_ins:  # of shards
            return None
        modules = [*self._evaluation.members.modules, *modules_of(self._loss)]
        return Reading.of(modules, self._batches.held, self._keeps)

    def _read(self, casts: object) -> tuple[list[object], object, object]:
        """The whole state, and its parts: the attributes of the model and those of the loss."""
        members = self._evaluation.refresh_members()
        held = [*members.parameters, *members.buffers, *tensors_of_loss(self._loss)]
        known = {id(t) for t in held}
        if self._held.stand_ins:
            held = [t for t in held if id(t) not in self._held.stand_ins]
        parts = strided_parts(held)  # the parts of a sparse tensor are other objects each time
        state: list[object] = [(id(m), m.training) for m in members.modules]
        state += [(id(t), version_of(t)) for t in held]
        state += [t.data_ptr() for t in parts]
        state.append(self._held.state)
        marks = Marks(known)
        model_marks: object = self._evaluation.attributes(marks)
        loss_marks: object = _marks_of(self._loss, marks)
        state += [model_marks, loss_marks]
        if self._keeps:
            parts += [t for t in marks.tensors if _is_plain(t)]
            state += fingerprints(parts)  # on CUDA this waits for the device once
        if self._batches.resident:
            state += [identity_of(strided_parts(tensors(batch))) for batch in self._batches]
        return [*state, casts], model_marks, loss_marks


def check_finite(space: ParameterSpace) -> None:
    """Raises a ValueError that names the first parameter which contains nan or inf."""
    values = [p.detach() for p in space.parameters.values()]
    if space.device.type == "cuda":  # every look waits; an overflow of the squares only costs time
        values = [torch.nn.utils.get_total_norm(values)]
    if all_finite(values):
        return
    for name, p in space.parameters.items():
        if not is_finite(p):
            raise ValueError(f"params: {name!r} contains nan or inf")


def tensors_of_loss(loss: Loss) -> list[Tensor]:
    """The parameters and buffers of a loss: weights of classes, say."""
    return tensors_of(loss) if isinstance(loss, nn.Module) else []


def _marks_of(loss: Loss, marks: Marks) -> object:
    """Attributes of a loss beside its parameters and buffers, such as label_smoothing."""
    if isinstance(loss, nn.Module):
        return marks.of_modules(modules_of(loss)), [id(t) for t in tensors_of(loss)]
    return marks.of(loss)


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor among the attributes can be fingerprinted like a parameter."""
    return type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not t.is_meta
