"""One ``torch.library`` op per kernel: CPU and CUDA implementations, fake kernel, and the switch to the references."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..arguments import as_integer

_library = torch.library.Library("curvext", "DEF")
_reference_only = False


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


def _implementation(
    name: str, device: str, reference: Callable[..., Tensor]
) -> Callable[..., Tensor]:
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
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Callable[..., object],
    setup_context: Callable[..., None],
) -> Callable[..., Tensor]:
    """Defines ``curvext::<name>`` and returns what calls it.

    Args:
        schema: name and arguments in torch's schema language.
        check: raises on bad arguments; runs before the reference, because the native kernels check their own.
        reference: the PyTorch truth.
        fake: shape and dtype of the result, for tracing.
        backward: the gradient, or a refusal that says why there is none.
        setup_context: saves what ``backward`` needs.
    """
    name = schema.partition("(")[0]

    def checked(*args: object) -> Tensor:
        check(*args)
        return reference(*args)

    _library.define(schema)
    _library.impl(name, _implementation(name, "cpu", checked), "CPU")
    _library.impl(name, _implementation(name, "cuda", checked), "CUDA")
    qualified = f"curvext::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    return _named(name, schema, getattr(torch.ops.curvext, name).default)


#: accepted Python types for each type of torch's schema language
_KINDS: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "Tensor?": (Tensor, type(None)),
    "int": (int, torch.SymInt),
}


def _named(name: str, schema: str, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op with type checks of its arguments, because PyTorch's own error would quote the schema."""
    wanted = re.findall(r"(Tensor\??|int) (\w+)[,)]", schema)
    kinds = tuple(_KINDS[kind] for kind, _ in wanted)

    def call(*args: Any) -> Tensor:
        for arg, kind in zip(args, kinds, strict=True):
            if not isinstance(arg, kind):
                _check_kinds(name, wanted, args)
        return op(*args)

    return call


def _check_kinds(name: str, wanted: list[tuple[str, str]], args: tuple[Any, ...]) -> None:
    for arg, (kind, argument) in zip(args, wanted, strict=True):
        if isinstance(arg, _KINDS[kind]):
            continue
        if kind != "int":
            raise TypeError(f"{name}: {argument}: expected a tensor, got {type(arg).__name__}")
        as_integer(f"{name}: {argument}", arg)


def register_without_gradient(
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    instead: str,
) -> Callable[..., Tensor]:
    """:func:`register` for a kernel that refuses to be differentiated.

    Args:
        schema, check, reference, fake: as there.
        instead: the PyTorch expression to differentiate in its place, for the message.
    """
    name = schema.partition("(")[0]
    *most, last = re.findall(r"Tensor (\w+)", schema)
    arguments = f"{', '.join(most)} or {last}"

    def refuse(ctx: object, grad: Tensor) -> None:
        raise RuntimeError(
            f"{name}: has no gradient with respect to {arguments}. Detach them, or differentiate "
            f"{instead} instead."
        )

    def keep_nothing(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
        """There is no gradient to form."""

    return register(
        schema,
        check=check,
        reference=reference,
        fake=fake,
        backward=refuse,
        setup_context=keep_nothing,
    )


def register_linear(
    schema: str,
    *,
    transpose: str,
    check: Callable[..., None],
    reference: Callable[..., Tensor],
    fake: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """:func:`register` for a matrix of outputs z and weights w that multiplies vectors, its second argument.

    The gradient with respect to the vectors is the transposed product; with respect to z and w it is refused.

    Args:
        schema: (Tensor z, Tensor <vectors>, Tensor w, ...), the same for both kernels.
        transpose: name of the kernel that multiplies the transposed matrix.
        check, reference, fake: as in :func:`register`.
    """
    name = schema.partition("(")[0]
    vectors = re.findall(r"Tensor (\w+)", schema)[1]

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

    return register(
        schema,
        check=check,
        reference=reference,
        fake=fake,
        backward=backward,
        setup_context=keep,
    )
