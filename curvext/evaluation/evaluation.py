"""The user's model as a function of a batch, left as found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curvext import data
from curvext.attributes import Marks
from curvext.evaluation import inputs
from curvext.evaluation.alternatives import Alternatives
from curvext.evaluation.isolation import autocast_anew, current_autocast, set_apart
from curvext.evaluation.layer_checks import check_layers
from curvext.evaluation.model_checks import DREW, ModelChecks, attributes_of
from curvext.evaluation.outputs import check_output, check_rows, tensor_of
from curvext.losses.dependence import check_independent
from curvext.operations.operation import GraphUse
from curvext.randomness import forbid_rng
from curvext.space import ParameterSpace
from curvext.torch_internals.hooks import (
    WithoutTensorHooks,
    has_backward_hooks,
    hooks_made,
    without_module_trackers,
)
from curvext.torch_internals.modules import Members
from curvext.torch_internals.switches import (
    reported_as_compiling,
    with_math_attention,
    without_checkpointing,
    without_compiled_code,
)


class Evaluation:
    """The model as a function of a batch: f and y, with the graph from the selected parameters.

    Inside :meth:`isolated` the selected parameters require grad, no others do, and hooks on gradients are set aside.
    All of it is put back afterwards, also after an error.

    Args:
        model: the module.
        space: the parameters to differentiate.
        forward: ``f(model, batch) -> output``; None for the conventions of ``EmpiricalRisk``.
        target: ``f(batch) -> target``, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        forward: Callable[[nn.Module, Any], Tensor] | None,
        target: Callable[[Any], Any] | None,
    ) -> None:
        self._model = model
        self._space = space
        self._forward = forward
        self._call = inputs.Call() if forward is None else forward
        self._target = target
        self._alternatives = Alternatives.of(model)
        self._checks = ModelChecks(model)
        #: parameters whose requires_grad :meth:`isolated` changed, and what it was
        self._changed_flags: list[tuple[Tensor, bool]] = []
        #: whether the last forward pass put hooks on tensors, which edit what a backward pass brings
        self.hooked = False
        #: as they stood at the last :meth:`refresh_members`
        self.members = Members.of(model)
        #: what the caller's autocast casts to; None where it is off, and outside of :meth:`isolated`
        self.autocast_dtype: torch.dtype | None = None

    # ------------------------------------------------------------------ the model as it stands

    @property
    def space(self) -> ParameterSpace:
        """The parameters to differentiate."""
        return self._space

    @property
    def by_convention(self) -> bool:
        """Whether the model is called, and the target found, by no function of the user's."""
        return self._forward is None and self._target is None

    def refresh_members(self) -> Members:
        """Reads the current members of the model, which later calls use."""
        self.members = Members.of(self._model)
        return self.members

    def invalidate(self) -> None:
        """Forgets earlier findings, because the model has other modules."""
        self._alternatives.invalidate()
        self._checks.invalidate()

    def tensors(self) -> list[Tensor]:
        """All parameters and buffers of the model."""
        return [*self.members.parameters, *self.members.buffers]

    def attributes(self, marks: Marks) -> list[object]:
        """Marks of everything that the output depends on beside parameters and buffers."""
        return [
            *marks.of_modules(self.members.modules),
            marks.of(self._forward),
            marks.of(self._target),
        ]

    def names_with_backward_hooks(self) -> list[str]:
        """The names of modules and parameters whose backward hooks :meth:`isolated` sets aside."""
        modules = [
            name or type(m).__name__
            for name, m in self._model.named_modules()
            if has_backward_hooks(m)
        ]
        return modules + [n for n, p in self._model.named_parameters() if has_backward_hooks(p)]

    def in_float64(self) -> Evaluation:
        """The same function of a copy of the model in float64."""
        model = copy.deepcopy(self._model).double()
        names = set(self._space.names)
        space = ParameterSpace(model, lambda name, _: name in names)
        return Evaluation(model, space, self._forward, self._target)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """The selected parameters, and only they, as plain leaves that require grad.

        Backward hooks of parameters and modules are set aside: one that edits gradients would edit curvature. The
        caller's autocast is on for the model alone: what is computed from its graph keeps its dtypes.
        """
        before = self._changed_flags, self.autocast_dtype  # passes over pairs of batches are nested
        kind, parameters = self._space.device.type, self.members.parameters
        dtype = current_autocast(kind) or self.autocast_dtype
        without_casts = torch.autocast(kind, enabled=False) if dtype else nullcontext()
        selected = self._space.parameters.values()
        apart = set_apart(parameters, self.members.modules, selected)
        with without_casts, apart as changed:
            self._changed_flags, self.autocast_dtype = before[0] or changed, dtype
            try:
                yield
            finally:
                self._changed_flags, self.autocast_dtype = before

    # ------------------------------------------------------------------ outputs and targets, inside isolated()

    def __call__(self, batch: Any, use: GraphUse) -> tuple[Tensor, Any]:
        """Output and target of a batch.

        Args:
            batch: one batch.
            use: what the graph must allow: "backward" passes alone, being "linearised" (tangents
                carried up it as well), or being differentiated "twice".

        Raises:
            RuntimeError: the forward pass is random or writes to the model, or is not twice
                differentiable where that is needed.
            ValueError, TypeError: the batch or the output is of no accepted form, not finite, or
                on another device.
        """
        self.check_inputs(batch)
        evaluate = partial(self._evaluate, batch, use)
        while True:
            output = self._checks.run(
                evaluate, data.tensors(batch), self.members, self._changed_flags
            )
            if not self._alternatives.find(output, use):
                return output, self.checked_target(batch, output)

    def check_inputs(self, batch: Any) -> None:
        """Raises as a call does for layers that are random or mix samples, and for faults of the batch."""
        check_layers(self._model, self.members.modules)
        inputs.check_batch(batch, self._space.device)

    def checked_target(self, batch: Any, output: Tensor) -> Any:
        """The target of a batch; raises as a call does for faults of the output and the target."""
        check_output(output)
        target = self._get_target(batch)
        if isinstance(target, Tensor) and target.requires_grad:
            check_independent(target, self._space.parameters, "data: the target depends on")
        check_rows(output, target)
        return target

    def without_tensor_hooks(self, batch: Any) -> Tensor:
        """The output for second derivatives, without the hooks that the forward pass puts on tensors."""
        with WithoutTensorHooks():
            return self(batch, "twice")[0]

    def traceable(self, batch: Any) -> Tensor:
        """The output by traceable operations, for a batch that an earlier call has checked."""
        attributes = attributes_of(self.members, contents=False)
        try:
            with (
                without_compiled_code(),
                without_checkpointing(),
                with_math_attention(),
                reported_as_compiling(),
                self._alternatives.taken("traced"),
            ):
                return self._output(batch)
        finally:
            attributes.put_back()  # they must not keep what a trace works with

    def plain(self, batch: Any) -> tuple[Tensor, Any] | None:
        """Output and target by PyTorch's own operations that it differentiates twice; None if the target has no rows.

        Nothing is checked, and the graph contains none of the library's own derivatives.
        """
        target = self._get_target(batch)
        if isinstance(target, Tensor) and target.ndim > 0 and len(target) == 0:
            return None
        attributes = attributes_of(self.members, contents=True)
        try:
            while True:
                output = self._evaluate(batch, "plain")
                if not self._alternatives.find(output, "plain"):
                    return output, target
        finally:
            attributes.put_back()

    def is_empty(self, batch: Any, tensors: Sequence[Tensor]) -> bool:
        """Whether a batch, of which these are the tensors, has no sample."""
        return inputs.is_empty(batch, tensors, self._get_target)

    # ------------------------------------------------------------------ one evaluation

    def _evaluate(self, batch: Any, use: GraphUse) -> Tensor:
        before = hooks_made()
        with (
            forbid_rng(self._space.device, DREW),
            without_compiled_code(),
            without_checkpointing(),
            without_module_trackers(),
            self._alternatives.taken(use),
            self._checks.unwritten_buffers(self.members),
        ):
            output = self._output(batch)
        self.hooked = hooks_made() != before
        return output

    def _output(self, batch: Any) -> Tensor:
        with autocast_anew(self._space.device.type, self.autocast_dtype):
            return tensor_of(self._call(self._model, batch))

    def _get_target(self, batch: Any) -> Any:
        return inputs.target_of(batch) if self._target is None else self._target(batch)
