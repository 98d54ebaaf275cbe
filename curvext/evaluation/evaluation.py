"""Evaluating the user's model on a batch, and leaving it as found."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from curvext import data
from curvext.attributes import Attributes, Marks
from curvext.contents import stored
from curvext.finite import is_finite
from curvext.graph import autograd_graph
from curvext.losses.dependence import check_independent
from curvext.operations.detours import (
    ATTENTION_BESIDE_PYTHON,
    DETOURS,
    RECURRENT,
    GraphUse,
    needed,
    twice_differentiable,
)
from curvext.operations.table import operation
from curvext.randomness import forbid_rng
from curvext.space import ParameterSpace
from curvext.torch_internals.hooks import (
    WithoutTensorHooks,
    backward_hooks_set_aside,
    has_backward_hooks,
    hooks_made,
    without_module_trackers,
)
from curvext.torch_internals.modules import BatchNorm, Dropout, Members, buffers_of
from curvext.torch_internals.switches import (
    plain_forward,
    reported_as_compiling,
    with_math_attention,
    without_checkpointing,
    without_compiled_code,
)
from curvext.torch_internals.tensors import leaves_of, version_of

#: the detours a model was found to need, kept as long as it lives: to find one takes a forward pass of its own
_DETOURS_OF: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


_DREW = (
    "the forward pass drew random numbers (functional dropout, say), so the risk is not a "
    "function of the parameters; call model.eval() or switch the randomness off"
)


class Forward:
    """The model as a function of a batch: f and y, with the graph from the selected parameters.

    The parameters that are not selected do not require grad meanwhile, those that are do; hooks on
    the parameters are set aside. All is put back afterwards, also after an error.

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
        self._target = target
        self._detours = _DETOURS_OF.setdefault(model, set())
        self._clean_in_mode: tuple[bool, ...] | None = None
        #: attributes that the forward pass writes and does not read
        self._records: set[str] = set()
        #: parameters whose requires_grad is another inside :meth:`borrowed`, and what it was
        self._reflagged: list[tuple[Tensor, bool]] = []
        #: whether the last forward pass put hooks on tensors, which edit what a backward pass brings
        self.hooked = False
        #: as they stood at the last look
        self.members = Members.of(model)
        #: what autocast of the caller's casts to, where it is switched on; known inside :meth:`borrowed`
        self.casts: torch.dtype | None = None

    def look(self) -> Members:
        """The members of the model as they stand now; what follows goes by them."""
        self.members = Members.of(self._model)
        return self.members

    def rebuilt(self) -> None:
        """The model has other modules: what was found out about it is found out again."""
        self._detours.clear()
        self._records.clear()
        self._clean_in_mode = None

    def with_backward_hooks(self) -> list[str]:
        """The names of modules and parameters whose backward hooks :meth:`borrowed` sets aside."""
        modules = [
            name or type(m).__name__
            for name, m in self._model.named_modules()
            if has_backward_hooks(m)
        ]
        return modules + [
            name for name, p in self._model.named_parameters() if has_backward_hooks(p)
        ]

    def attributes(self, marks: Marks) -> list[object]:
        """Marks of all that the model goes by beside parameters and buffers, and of ``forward=`` and ``target=``."""
        return [
            *marks.of_modules(self.members.modules),
            marks.of(self._forward),
            marks.of(self._target),
        ]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """The selected parameters, and only they, as plain leaves that require grad.

        Backward hooks of parameters and modules are set aside: one that edits gradients would edit curvature. Autocast
        of the caller's is switched off but for the model: what is computed of its graph keeps its dtypes.
        """
        selected = {id(p) for p in self._space.parameters.values()}
        everything = self.members.parameters
        flags = [p.requires_grad for p in everything]
        reflagged = self._reflagged
        changed: list[tuple[Tensor, bool]] = []
        kind = self._space.device.type
        around = self.casts  # passes are nested where batches are met in pairs
        if torch.is_autocast_enabled(kind):
            self.casts = torch.get_autocast_dtype(kind)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(kind, enabled=False) if self.casts else nullcontext(),
            plain_forward(),
            backward_hooks_set_aside(everything, self.members.modules),
        ):
            try:
                for p, flag in zip(everything, flags, strict=True):
                    if flag is not (id(p) in selected):
                        p.requires_grad_(not flag)
                        changed.append((p, flag))
                self._reflagged = reflagged or changed
                yield
            finally:
                self.casts = around
                self._reflagged = reflagged
                for p, flag in zip(everything, flags, strict=True):
                    if p.requires_grad is not flag:
                        p.requires_grad_(flag)

    def __call__(self, batch: Any, use: GraphUse) -> tuple[Tensor, Any]:
        """Output and target of a batch; call inside :meth:`borrowed`.

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

        def evaluate() -> Tensor:
            while True:
                output = self._run(batch, use)
                detours = self._needed_detours(output, use)
                if detours <= self._detours:
                    return output
                self._detours.update(detours)

        return self.checked(batch, evaluate)

    def muted(self, batch: Any) -> Tensor:
        """The output as of a call, for second derivatives, without the hooks that the forward pass puts on tensors."""
        with WithoutTensorHooks():
            return self(batch, "twice")[0]

    def checked(self, batch: Any, evaluate: Callable[[], Tensor]) -> tuple[Tensor, Any]:
        """Output and target of a batch, the output by some other evaluation; raises as a call does."""
        self._check_mode()
        self._check_batch(batch)
        output = evaluate()
        self._check_output(output)
        target = self._get_target(batch)
        if isinstance(target, Tensor) and target.requires_grad:
            check_independent(target, self._space.parameters, "data: the target depends on")
        if isinstance(target, Tensor) and target.ndim > 0 and target.shape[0] != output.shape[0]:
            raise ValueError(
                f"data: the output has {output.shape[0]} samples (dimension 0), the target {target.shape[0]}"
            )
        return output, target

    def composed(self, batch: Any) -> Tensor:
        """The output by operations that can be traced, once a call has found no fault; inside :meth:`borrowed` too."""
        with ExitStack() as stack:
            stack.enter_context(without_compiled_code())
            stack.enter_context(without_checkpointing())
            stack.enter_context(with_math_attention())
            stack.enter_context(reported_as_compiling())
            for detour in sorted(needed(self._detours, "traced")):
                stack.enter_context(DETOURS[detour].taken())
            attributes = self._held_attributes(contents=False)
            stack.callback(attributes.put_back)  # they must not keep what a trace works with
            return self._call(batch)

    def plain(self, batch: Any) -> tuple[Tensor, Any] | None:
        """Output and target by PyTorch's own operations that it differentiates twice; inside :meth:`borrowed` too.

        None for a batch whose target has no rows. Nothing is checked, and no derivative of ours is in the graph.
        """
        target = self._get_target(batch)
        if isinstance(target, Tensor) and target.ndim > 0 and len(target) == 0:
            return None
        with ExitStack() as stack:
            stack.enter_context(forbid_rng(self._space.device, _DREW))
            stack.enter_context(without_compiled_code())
            stack.enter_context(without_checkpointing())
            stack.enter_context(self._unwritten_buffers())
            stack.callback(self._held_attributes(contents=True).put_back)
            names: set[str] = set()
            while True:
                with twice_differentiable(names):
                    output = self._call(batch)
                found = (
                    set() if output.grad_fn is None else autograd_graph.node_names(output.grad_fn)
                )
                if found & RECURRENT <= names:
                    return output, target
                names = found & RECURRENT

    def widened(self) -> Forward:
        """The same function of a copy of the model in float64."""
        model = copy.deepcopy(self._model).double()
        names = set(self._space.names)
        space = ParameterSpace(model, lambda name, _: name in names)
        return Forward(model, space, self._forward, self._target)

    @property
    def space(self) -> ParameterSpace:
        """The parameters to differentiate."""
        return self._space

    def is_empty(self, batch: Any, inside: Sequence[Tensor]) -> bool:
        """Whether a batch has no sample; ``inside`` are its tensors.

        Where some of them have rows and some have none, its target tells: a graph without edges is a sample too.
        """
        rows = [t.shape[0] for t in inside if t.ndim > 0]
        if 0 not in rows:
            return False
        if not any(rows):
            return True
        for part in (self._get_target(batch), _first(batch)):
            counts = [t.shape[0] for t in data.tensors(part) if t.ndim > 0]
            if counts:
                return not any(counts)
        return False

    def tensors(self) -> list[Tensor]:
        """All parameters and buffers of the model."""
        return [*self.members.parameters, *self.members.buffers]

    def modes(self) -> tuple[bool, ...]:
        """Which modules are in training mode."""
        return tuple(m.training for m in self.members.modules)

    # ------------------------------------------------------------------ one evaluation

    def _run(self, batch: Any, use: GraphUse) -> Tensor:
        """The output by a forward pass that leaves model and batch as they were."""
        first = self.modes() != self._clean_in_mode
        try:
            output = self._recorded(batch, use, first)
            if first and self._reflagged:
                self._check_flags(output, batch, use)
            if first and not output.requires_grad and output.is_floating_point() and output.ndim:
                self._check_graph(batch, use)
        except BaseException:
            self._clean_in_mode = None  # what went wrong here is looked for, and undone, again
            raise
        return output

    def _recorded(self, batch: Any, use: GraphUse, first: bool) -> Tensor:
        inputs = _Inputs(data.tensors(batch), first)
        attributes = self._held_attributes(first or bool(self._records))
        as_found = False
        try:
            output = self._evaluate(batch, use)
            inputs.check()
            changed = attributes.changed(self._name)
            as_found = not changed
            if changed and not self._records.issuperset(changed):
                self._check_unread(changed, output, batch, use)
                self._records.update(changed)
        finally:
            if not as_found:
                attributes.put_back()
        self._check_remembered(attributes, output)
        return output

    def _evaluate(self, batch: Any, use: GraphUse) -> Tensor:
        hooks_before = hooks_made()
        with ExitStack() as stack:
            stack.enter_context(forbid_rng(self._space.device, _DREW))
            stack.enter_context(without_compiled_code())
            stack.enter_context(without_checkpointing())
            stack.enter_context(without_module_trackers())
            for detour in sorted(needed(self._detours, use)):
                stack.enter_context(DETOURS[detour].taken())
            with self._unwritten_buffers():
                output = self._call(batch)
        self.hooked = hooks_made() != hooks_before
        return output

    def _held_attributes(self, contents: bool) -> Attributes:
        known = {id(t) for t in self.tensors()}
        return Attributes(self.members.modules, known, contents)

    def _check_unread(
        self, changed: Sequence[str], output: Tensor, batch: Any, use: GraphUse
    ) -> None:
        """Raises if the forward pass reads what it wrote to attributes: a second one then gives another output."""
        again = self._evaluate(batch, use)
        if again.shape != output.shape or not torch.equal(again.detach(), output.detach()):
            raise RuntimeError(
                f"model: the forward pass keeps a state in the attribute {changed[0]!r} and reads it, so two "
                "evaluations differ. Hand the state in as an input, or reset it in a forward= of your own before the "
                "model is called"
            )

    def _check_remembered(self, attributes: Attributes, output: Tensor) -> None:
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

    def _check_flags(self, output: Tensor, batch: Any, use: GraphUse) -> None:
        """Raises if the model computes something else where other parameters require a gradient; looked at once."""
        try:
            for p, flag in self._reflagged:
                p.requires_grad_(flag)
            found = self._evaluate(batch, use).detach()
        finally:
            for p, flag in self._reflagged:
                p.requires_grad_(not flag)
        far = (found - output.detach()).abs().max() if found.shape == output.shape else torch.inf
        if found.numel() and not far <= 1e4 * torch.finfo(output.dtype).eps * found.abs().max():
            raise RuntimeError(
                "params: the model gives another output where the parameters that are left out require no gradient "
                "(it looks at requires_grad), so this would be the curvature of another function. Pass params=None and "
                "take the blocks you want, or set requires_grad as it shall be before the risk is made"
            )

    def _call(self, batch: Any) -> Tensor:
        with self._cast():
            if self._forward is not None:
                output = self._forward(self._model, batch)
            elif isinstance(batch, Mapping):
                output = self._model(**{k: value for k, value in batch.items() if k != "labels"})
            else:
                output = self._model(_pair(batch)[0])
        if not isinstance(output, Tensor):
            if isinstance(output, Mapping) and "logits" in output:
                output = output["logits"]
            else:
                output = getattr(output, "logits", output)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"model: the output is a {type(output).__name__} without .logits; "
                "pass forward=lambda model, batch: ... that returns one tensor"
            )
        return output

    @contextmanager
    def _cast(self) -> Iterator[None]:
        """Autocast as the caller has it, without weights that were cast before: at other values, or without a graph."""
        if self.casts is None:
            yield
            return
        torch.clear_autocast_cache()
        try:
            with torch.autocast(self._space.device.type, self.casts):
                yield
        finally:
            torch.clear_autocast_cache()

    def _get_target(self, batch: Any) -> Any:
        if self._target is not None:
            return self._target(batch)
        if isinstance(batch, Mapping):
            if "labels" not in batch:
                raise ValueError(
                    f"data: a mapping needs the key 'labels' (or pass target=), got {sorted(map(str, batch))}"
                )
            return batch["labels"]
        return _pair(batch)[1]

    def _needed_detours(self, output: Tensor, use: GraphUse) -> set[str]:
        if output.grad_fn is None:
            return set()
        names = autograd_graph.node_names(output.grad_fn)
        if use != "backward" and "EmbeddingBagBackward0" in names:
            raise RuntimeError(
                "EmbeddingBag has no second derivative in PyTorch; freeze it with params=, or use "
                "nn.Embedding followed by sum or mean. (First-order quantities such as "
                "fisher_diagonal(kind='empirical') work.)"
            )
        found = needed(names, use)
        if use == "linearised" and "ScaledDotProductFlashAttentionForCpuBackward0" in names:
            functions = autograd_graph.names_in_python(output.grad_fn)
            if not all(
                operation(name).tangent is not None for name in functions
            ):  # no tangents: J v by double backward
                found.add(ATTENTION_BESIDE_PYTHON)
        return found

    # ------------------------------------------------------------------ checks

    def _check_mode(self) -> None:
        for module in self.members.modules:
            fault = _fault_of(module)
            if fault is not None:
                raise RuntimeError(f"model: {self._name(module)!r} {fault}")

    def _name(self, module: nn.Module) -> str:
        return next(name for name, m in self._model.named_modules() if m is module)

    def _check_batch(self, batch: Any) -> None:
        for t in data.tensors(batch):
            if t.device != self._space.device:
                raise ValueError(
                    f"data: a tensor is on {t.device}, the parameters on {self._space.device}; move the batch"
                )
            if (t.is_floating_point() or t.is_complex()) and not all(
                is_finite(part) for part in stored([t])
            ):
                raise ValueError(
                    f"data: a tensor of shape {list(t.shape)} contains nan or inf. Leave samples with missing labels "
                    "out; a mask may be boolean, or have torch.finfo(dtype).min in place of -inf"
                )

    def _check_output(self, output: Tensor) -> None:
        if output.ndim == 0:
            raise ValueError(
                "model: the output is a scalar; expected one row per sample (dimension 0)"
            )
        if not output.is_floating_point():
            hint = (
                "; return torch.view_as_real(output), or abs, real or imag"
                if output.is_complex()
                else ""
            )
            raise TypeError(
                f"model: the output has dtype {output.dtype}; floating point is needed{hint}"
            )
        if not is_finite(output):
            hint = ""
            if bool(torch.isneginf(output).any()) and not bool(output.isnan().any()):
                hint = "; where classes are masked, write a large finite number such as -1e9 in place of -inf"
            raise ValueError(f"model: the output {list(output.shape)} contains nan or inf{hint}")

    def _check_graph(self, batch: Any, use: GraphUse) -> None:
        """Raises if the model reads parameters and yet nothing leads to any, selected or not."""
        rest = [p for p in self.members.parameters if not p.requires_grad and p.is_floating_point()]
        try:
            for p in rest:
                p.requires_grad_()
            with _Readers({id(p) for p in self.members.parameters}) as readers:
                reached = self._evaluate(batch, use).requires_grad
        finally:
            for p in rest:
                p.requires_grad_(False)
        if readers.found and not reached:
            raise RuntimeError(
                "model: nothing leads from the output to any parameter, so that all derivatives would be zero: the "
                "forward pass runs under no_grad or inference_mode, detaches, or goes through NumPy"
            )

    @contextmanager
    def _unwritten_buffers(self) -> Iterator[None]:
        """Puts buffers back and raises if the forward pass writes to one or replaces it; looked at once per mode."""
        mode = self.modes()
        if mode == self._clean_in_mode:
            yield
            return
        held = [
            (m, n, b)
            for m in self.members.modules
            for n, b in buffers_of(m).items()
            if b is not None
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
                    changed.append(f"{self._name(module)}.{name}".removeprefix("."))
        if changed:
            cure = (
                "call model.eval()"
                if any(mode)
                else "it does so in evaluation mode too: write it behind if self.training, or keep it out of forward"
            )
            raise RuntimeError(
                f"model: the forward pass writes to the buffer {changed[0]!r}, so two evaluations differ; {cure}"
            )
        self._clean_in_mode = mode


class _Readers(torch.overrides.TorchFunctionMode):
    """Sees whether any operation of a forward pass reads one of some tensors, told by their ids."""

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


class _Inputs:
    """The tensors of a batch, to see whether a forward pass writes to one.

    Args:
        tensors: the tensors.
        copied: whether they are copied too, so that what was written can be undone.
    """

    def __init__(self, tensors: Sequence[Tensor], copied: bool) -> None:
        self._tensors = [t for t in tensors if not t.is_inference()]
        self._versions = [version_of(t) for t in self._tensors]
        self._copies = [t.detach().clone() for t in self._tensors] if copied else []

    def check(self) -> None:
        """Raises if one was written to, and undoes it where copies are there."""
        written = [version_of(t) != v for t, v in zip(self._tensors, self._versions, strict=True)]
        if not any(written):
            return
        with torch.no_grad():
            for t, copy in zip(self._tensors, self._copies, strict=False):
                if not torch.equal(t, copy):
                    t.copy_(copy)
        shape = list(self._tensors[written.index(True)].shape)
        raise RuntimeError(
            f"model: the forward pass writes to its input (a tensor of shape {shape}), so the data are others at the "
            "next evaluation. Write x = x - 0.5 instead of x.sub_(0.5), or hand the model a copy: "
            "forward=lambda model, batch: model(batch[0].clone())"
        )


def _fault_of(module: nn.Module) -> str | None:
    """Why a module does not make the output a function of the parameters, sample by sample, or None."""
    kind = type(module).__name__
    if isinstance(module, Dropout) and module.training and module.p > 0:
        return f"({kind}) is in training mode, so the risk is random; call model.eval()"
    if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
        cure = (
            "call model.eval()"
            if module.running_mean is not None
            else "it has no running statistics; build it with track_running_stats=True and call model.eval()"
        )
        return f"({kind}) normalises by the statistics of the batch, so there is no per-sample loss; {cure}"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        if module.max_norm is not None:
            return (
                "has max_norm, which rewrites its weight in the forward pass; renormalise once and "
                "set max_norm = None"
            )
        if module.scale_grad_by_freq:
            return (
                "has scale_grad_by_freq, so what PyTorch calls its gradient is not the derivative of the "
                "loss; set it to False"
            )
    return None


def _first(batch: Any) -> Any:
    """What comes first in a batch: the inputs of a pair."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(iter(values), None) if isinstance(values, Iterable) else None


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{len(batch)} entries" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(
            f"data: a batch must be a pair (x, y) or a mapping with 'labels', got {what}; or say what of it is which: "
            "forward=lambda model, batch: model(batch[0]), target=lambda batch: batch[1]"
        )
    return batch[0], batch[1]
