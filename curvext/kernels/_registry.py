"""One ``torch.library`` op per kernel: CPU and CUDA implementations, fake kernel, and the switch to the references.

A kernel's file decorates the function that checks the arguments and gives the empty result. Its annotated signature is
the schema, its body the checks of the reference and the fake kernel: none of them is written twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..arguments import as_integer

_library = torch.library.Library("curvext", "DEF")
_reference_only = False
_reaches_cpu_kernel: Callable[..., bool] = getattr(
    _extension.module, "reaches_cpu_kernel", lambda *args: False
)

Op = Callable[..., Tensor]
#: annotation → what torch's schema language calls it, and the Python types that are accepted
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "Tensor": ("Tensor", (Tensor,)),
    "Tensor | None": ("Tensor?", (Tensor, type(None))),
    "int": ("int", (int, torch.SymInt)),
}


class use_reference:
    """Runs every kernel on its PyTorch reference, to bisect a kernel against its formula.

    As a context manager it restores the earlier state on leaving; called plainly it switches for good.

    Args:
        enabled: whether the references run.

    Example:
        >>> import torch, curvext.kernels as kernels
        >>> a, g = torch.ones(3, 2, 4), torch.ones(1, 3, 2, 5)
        >>> with kernels.use_reference():
        ...     kernels.outer_square(a, g)[0, 0]
        tensor(12.)
    """

    def __init__(self, enabled: bool = True) -> None:
        global _reference_only
        self._before = _reference_only
        _reference_only = bool(enabled)

    def __enter__(self) -> use_reference:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _reference_only
        _reference_only = self._before


def _implementation(name: str, device: str, reference: Op) -> Op:
    built = _extension.kernels_for(device)
    native = getattr(built, name, None)

    def run(*args: object) -> Tensor:
        if _reference_only:
            return reference(*args)
        if native is None:
            _extension.warn_once(device)
            return reference(*args)
        return native(*args)

    return run


def register(
    name: str,
    reference: Op,
    *,
    backward: Callable[..., object],
    setup_context: Callable[..., None],
) -> Callable[[Op], Op]:
    """Defines the op ``curvext::<name>`` from the function that it decorates, and gives what calls the op.

    The decorated function checks the arguments and gives the result without its numbers. It runs before the reference,
    as the native kernels check their own arguments, and in its place while a program is traced.

    Args:
        name: of the op, and of the native kernel.
        reference: the PyTorch truth.
        backward: the gradient, or a refusal that says why there is none.
        setup_context: saves what ``backward`` needs.
    """

    def define(empty: Op) -> Op:
        kinds = _arguments(empty)
        schema = ", ".join(f"{_KINDS[kind][0]} {argument}" for argument, kind in kinds.items())

        def checked(*args: object) -> Tensor:
            empty(*args)
            return reference(*args)

        _library.define(f"{name}({schema}) -> Tensor")
        _library.impl(name, _implementation(name, "cpu", checked), "CPU")
        _library.impl(name, _implementation(name, "cuda", checked), "CUDA")
        qualified = f"curvext::{name}"
        torch.library.register_fake(qualified, empty, lib=_library)
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_library
        )
        return _named(name, kinds, getattr(torch.ops.curvext, name).default)

    return define


def _arguments(function: Op) -> dict[str, str]:
    """The names of a function's arguments with their annotations."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: str(parameter.annotation) for parameter in parameters}


def _named(name: str, kinds: dict[str, str], op: Op) -> Op:
    """The op with type checks of its arguments, because PyTorch's own error would quote the schema."""
    native = getattr(_extension.kernels_for("cpu"), name, None)
    types = tuple(_KINDS[kind][1] for kind in kinds.values())

    def call(*args: Any) -> Tensor:
        for arg, accepted in zip(args, types, strict=True):
            if not isinstance(arg, accepted):
                _refuse_kinds(name, kinds, args)
        # the dispatcher takes several times as long as a small kernel, for what it would find nothing to do
        if native is None or torch.compiler.is_compiling() or _reference_only:
            return op(*args)
        return native(*args) if _reaches_cpu_kernel(*args) else op(*args)

    return call


def _refuse_kinds(name: str, kinds: dict[str, str], args: tuple[Any, ...]) -> None:
    for arg, (argument, kind) in zip(args, kinds.items(), strict=True):
        if isinstance(arg, _KINDS[kind][1]):
            continue
        if kind != "int":
            raise TypeError(f"{name}: {argument}: expected a tensor, got {type(arg).__name__}")
        as_integer(f"{name}: {argument}", arg)


def register_without_gradient(name: str, reference: Op, *, instead: str) -> Callable[[Op], Op]:
    """:func:`register` for a kernel that refuses to be differentiated.

    Args:
        name, reference: as there.
        instead: the PyTorch expression to differentiate in its place, for the message.
    """

    def define(empty: Op) -> Op:
        *most, last = [arg for arg, kind in _arguments(empty).items() if kind == "Tensor"]

        def refuse(ctx: object, grad: Tensor) -> None:
            raise RuntimeError(
                f"{name}: has no gradient with respect to {', '.join(most)} or {last}. Detach them, or differentiate "
                f"{instead} instead."
            )

        def keep_nothing(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
            """There is no gradient to form."""

        return register(name, reference, backward=refuse, setup_context=keep_nothing)(empty)

    return define


def register_linear(name: str, reference: Op, *, transpose: str) -> Callable[[Op], Op]:
    """:func:`register` for a matrix of outputs z and weights w that multiplies vectors, its second argument.

    The gradient with respect to the vectors is the transposed product; with respect to z and w it is refused.
    The arguments are (z, vectors, w, ...), the same for both kernels.

    Args:
        name, reference: as in :func:`register`.
        transpose: name of the kernel that multiplies the transposed matrix.
    """

    def define(empty: Op) -> Op:
        vectors = list(_arguments(empty))[1]

        def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            z, _, w, *ctx.rest = inputs
            ctx.save_for_backward(z, w)

        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
                raise RuntimeError(
                    f"{name}: has a gradient with respect to {vectors} alone, but z or w requires one. Detach them: "
                    f"the product is linear in {vectors} at fixed z."
                )
            z, w = ctx.saved_tensors
            product = getattr(torch.ops.curvext, transpose)(z, grad, w, *ctx.rest)
            return None, product, None, *(None for _ in ctx.rest)

        return register(name, reference, backward=backward, setup_context=keep)(empty)

    return define
