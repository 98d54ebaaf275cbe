"""Checks that forward passes do not write, keep a state or draw; violations are detected, undone and refused.

Each pass is checked for writes to inputs and attributes. Checks that need a copy of the buffers or a second evaluation
run once, in the first pass with these modes of the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvext.attributes import Attributes
from curvext.evaluation.inputs import InputWrites
from curvext.evaluation.layer_checks import name_of
from curvext.graph import autograd_graph
from curvext.torch_internals.modules import Members, buffers_of
from curvext.torch_internals.tensors import leaves_of, version_of

#: of a forward pass that moved a generator
DREW = (
    "the forward pass drew random numbers (functional dropout, say), so the risk is not a "
    "function of the parameters; call model.eval() or switch the randomness off"
)


def attributes_of(members: Members, contents: bool) -> Attributes:
    """The attributes of all modules, to be put back; with ``contents`` also what their tensors hold."""
    known = {id(t) for t in (*members.parameters, *members.buffers)}
    return Attributes(members.modules, known, contents)


class ModelChecks:
    """Forward passes that leave the model unchanged.

    Args:
        model: the module, whose names errors quote.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: of the passes that were checked, the modes of all modules
        self._checked_modes: tuple[bool, ...] | None = None
        #: attributes that the forward pass writes and does not read
        self._written_only: set[str] = set()

    def invalidate(self) -> None:
        """Repeats the one-time checks, because the model has other modules."""
        self._checked_modes = None
        self._written_only.clear()

    def run(
        self,
        evaluate: Callable[[], Tensor],
        inputs: Sequence[Tensor],
        members: Members,
        changed_flags: Sequence[tuple[Tensor, bool]],
    ) -> Tensor:
        """The output of a forward pass.

        Args:
            evaluate: the pass, inside :meth:`unwritten_buffers`.
            inputs: the tensors of the batch.
            members: those of the model.
            changed_flags: parameters whose requires_grad was changed for this pass, and what it was.

        Raises:
            RuntimeError: the pass writes to its inputs or to buffers, reads a state that it keeps, looks at
                requires_grad, or leads to no parameter.
        """
        first = members.modes() != self._checked_modes
        try:
            output = self._with_attributes_put_back(evaluate, inputs, members, first)
            if first and changed_flags:
                _check_flags(changed_flags, output, evaluate)
            if first and not output.requires_grad and output.is_floating_point() and output.ndim:
                _check_graph(members.parameters, evaluate)
        except BaseException:
            self._checked_modes = None  # check, and undo, again in the next pass
            raise
        return output

    def _with_attributes_put_back(
        self,
        evaluate: Callable[[], Tensor],
        inputs: Sequence[Tensor],
        members: Members,
        first: bool,
    ) -> Tensor:
        writes = InputWrites(inputs, copied=first)
        attributes = attributes_of(members, contents=first or bool(self._written_only))
        as_found = False
        try:
            output = evaluate()
            writes.check()
            changed = attributes.changed(lambda module: name_of(self._model, module))
            as_found = not changed
            if not self._written_only.issuperset(changed):
                _check_unread(changed[0], output, evaluate)
                self._written_only.update(changed)
        finally:
            writes.put_flags_back()
            if not as_found:
                attributes.put_back()
        _check_remembered(attributes, output)
        return output

    @contextmanager
    def unwritten_buffers(self, members: Members) -> Iterator[None]:
        """Restores buffers and raises a RuntimeError if a forward pass writes to one or replaces it; once per mode."""
        modes = members.modes()
        if modes == self._checked_modes:
            yield
            return
        held = [
            (m, n, b) for m in members.modules for n, b in buffers_of(m).items() if b is not None
        ]
        saved = [(version_of(b), b.detach().clone()) for _, _, b in held]
        changed: list[str] = []
        try:
            yield
        finally:
            for (module, name, buffer), (version, content) in zip(held, saved, strict=True):
                replaced = buffers_of(module).get(name) is not buffer
                buffers_of(module)[name] = buffer
                written = version_of(buffer) != version and not torch.equal(buffer, content)
                if written:
                    with torch.no_grad():
                        buffer.copy_(content)
                if replaced or written:
                    changed.append(f"{name_of(self._model, module)}.{name}".removeprefix("."))
        if changed:
            cure = (
                "call model.eval()"
                if any(modes)
                else "it does so in evaluation mode too: write it behind if self.training, or keep it out of forward"
            )
            raise RuntimeError(
                f"model: the forward pass writes to the buffer {changed[0]!r}, so two evaluations differ; {cure}"
            )
        self._checked_modes = modes


# ---------------------------------------------------------------------- second evaluations


def _check_unread(attribute: str, output: Tensor, evaluate: Callable[[], Tensor]) -> None:
    """Raises if the forward pass reads what it wrote to attributes: a second one then gives another output."""
    again = evaluate()
    if again.shape != output.shape or not torch.equal(again.detach(), output.detach()):
        raise RuntimeError(
            f"model: the forward pass keeps a state in the attribute {attribute!r} and reads it, so two "
            "evaluations differ. Hand the state in as an input, or reset it in a forward= of your own before the "
            "model is called"
        )


def _check_remembered(attributes: Attributes, output: Tensor) -> None:
    """Raises if the output was made from a tensor that an earlier call left in an attribute with its graph."""
    remembered = [t.grad_fn for t in attributes.tensors if t.grad_fn is not None]
    if not remembered or output.grad_fn is None:
        return
    if not autograd_graph.nodes_below(output.grad_fn).isdisjoint(remembered):
        raise RuntimeError(
            "model: the forward pass reads a tensor that an earlier call left in an attribute with its graph "
            f"({', '.join(n.name() for n in remembered[:3])}), which belongs to that call and its parameters. "
            "Compute it anew in every forward pass, or empty that attribute before"
        )


def _check_flags(
    changed: Sequence[tuple[Tensor, bool]], output: Tensor, evaluate: Callable[[], Tensor]
) -> None:
    """Raises if the model computes something else where other parameters require a gradient."""
    try:
        for p, flag in changed:
            p.requires_grad_(flag)
        found = evaluate().detach()
    finally:
        for p, flag in changed:
            p.requires_grad_(not flag)
    far = (found - output.detach()).abs().max() if found.shape == output.shape else torch.inf
    if found.numel() and not far <= 1e4 * torch.finfo(output.dtype).eps * found.abs().max():
        raise RuntimeError(
            "params: the model gives another output where the parameters that are left out require no gradient "
            "(it looks at requires_grad), so this would be the curvature of another function. Pass params=None and "
            "take the blocks you want, or set requires_grad as it shall be before the risk is made"
        )


def _check_graph(parameters: Sequence[nn.Parameter], evaluate: Callable[[], Tensor]) -> None:
    """Raises if the model reads parameters and yet its output leads to none, selected or not."""
    rest = [p for p in parameters if not p.requires_grad and p.is_floating_point()]
    try:
        for p in rest:
            p.requires_grad_()
        with _Readers({id(p) for p in parameters}) as readers:
            reached = evaluate().requires_grad
    finally:
        for p in rest:
            p.requires_grad_(False)
    if readers.found and not reached:
        raise RuntimeError(
            "model: nothing leads from the output to any parameter, so that all derivatives would be zero: the "
            "forward pass runs under no_grad or inference_mode, detaches, or goes through NumPy"
        )


class _Readers(torch.overrides.TorchFunctionMode):
    """Sees whether any operation of a forward pass reads one of some tensors.

    Args:
        ids: of the tensors.
    """

    def __init__(self, ids: set[int]) -> None:
        super().__init__()
        self._ids = ids
        self.found = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = leaves_of((args, kwargs))
        plain = getattr(func, "__name__", "") not in ("requires_grad_", "__get__", "__set__")
        self.found = self.found or (plain and any(id(leaf) in self._ids for leaf in leaves))
        return func(*args, **(kwargs or {}))
