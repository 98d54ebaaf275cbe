"""Linearisations through ``torch.compile``: the products of a kept graph, traced once and fused.

A product is traced as the eager code computes it, by operations of PyTorch's own, and cut into stages: what the
batch alone decides, and what comes with each vector. The loss stays outside, between two stages, with its kernels.

One file because trace, stages and the two products of a trace share the numbering of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from curvext.data import tensors
from curvext.evaluation.evaluation import Evaluation
from curvext.losses import LossPoint, OutputLoss
from curvext.products.kept_graph import (
    KeptGraph,
    Linearisation,
    SecondDerivatives,
    check_twice_differentiable,
)
from curvext.products.partition import Partition, Values
from curvext.space import ParameterSpace
from curvext.torch_internals.switches import deterministic_algorithms

#: the stages: inputs that come with each, and what it gives
_FORWARD = 0  # parameters, buffers and the batch → f
_BACKWARD = 1  # r
_TANGENTS = 2  # v → J v
_PULL_BACK = 3  # u → Jᵀ u, or with second derivatives Jᵀ u + Σ_c r_c ∂²f_c/∂θ² v


class Compiler:
    """The traces of one model, by the form of a batch.

    Args:
        evaluation: the model as a function of a batch.
        space: the parameters θ.
        backend: of ``torch.compile``.
    """

    def __init__(self, evaluation: Evaluation, space: ParameterSpace, backend: str) -> None:
        self._evaluation = evaluation
        self._space = space
        self._backend = backend
        self._device = space.device
        self._traces: dict[tuple[object, ...], Partition] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_traces": {}}  # a copy or a pickle traces anew

    def __str__(self) -> str:
        return f"{self._backend}, {len(self._traces)} traces"

    @property
    def _parameters(self) -> list[Tensor]:
        """The current θ."""
        return list(self._space.parameters.values())

    def invalidate(self) -> None:
        """Drops the traces, because the model has other modules."""
        self._traces.clear()

    def jacobian(
        self, batch: Any, loss: OutputLoss, first: int, number: int
    ) -> tuple[Tensor, CompiledJacobian]:
        """The output of a batch, and the batch ready for products with J; call inside ``evaluation.isolated()``.

        Args:
            batch: the batch.
            loss: ℓ.
            first: index of its first datum.
            number: of the batch in its pass.
        """
        output, started = self._start(batch, loss, number, twice=False)
        return output, CompiledJacobian(*started, self._parameters, first)

    def second_derivatives(
        self, batch: Any, loss: OutputLoss, number: int
    ) -> tuple[Tensor, CompiledHessian]:
        """Likewise, ready for products with second derivatives."""
        output, started = self._start(batch, loss, number, twice=True)
        return output, CompiledHessian(*started, self._parameters)

    def _start(
        self, batch: Any, loss: OutputLoss, number: int, twice: bool
    ) -> tuple[Tensor, tuple[Partition, Values, LossPoint]]:
        given = _distinct([*self._evaluation.tensors(), *tensors(batch)])
        key = (
            twice,
            self._evaluation.autocast_dtype,
            self._evaluation.members.modes(),
            tuple(t.stride() for t in given),
            _form(batch),
            *_aliases(batch),
        )
        if key not in self._traces:
            self._traces[key] = self._traced(batch, given, twice=twice)
        staged = self._traces[key]
        self._evaluation.check_inputs(batch)
        (output,), saved = staged.run(_FORWARD, {}, [t.detach() for t in given])
        target = self._evaluation.checked_target(batch, output)
        point = loss.at(output, target, number)
        if staged.awaits(_BACKWARD):  # first derivatives do without the residual
            _, saved = staged.run(_BACKWARD, saved, _plain([point.residual]))
        return output, (staged, saved, point)

    def _traced(self, batch: Any, given: Sequence[Tensor], twice: bool) -> Partition:
        # run eagerly first, where errors of the model or the data are reported
        output, _ = self._evaluation(batch, "twice" if twice else "linearised")
        if self._evaluation.hooked:
            raise RuntimeError(
                "compile: the forward pass puts hooks on tensors (register_hook), which a trace would go past; remove "
                "them, or leave compile=False"
            )
        check_twice_differentiable(output, self._parameters)
        residual, u, *v = (
            torch.zeros(t.shape, dtype=t.dtype, device=t.device)
            for t in (output, output, *self._parameters)
        )

        def product(
            given: Sequence[Tensor], residual: Tensor, v: Sequence[Tensor], u: Tensor
        ) -> list[Tensor]:
            # the model reads the tensors of ``given`` where it has them: the trace knows them by identity
            point = _Open(residual, u)
            output = self._evaluation.traceable(batch)
            at = KeptGraph(output, point, self._parameters, 0, checked=True)
            if twice:
                at.keep_gradient()
                pulled = at.hvp(v)
                moved = torch.zeros_like(u) if point.moved is None else point.moved
            else:
                moved, pulled = at.jvp(v), at.vjp(u)
            return [at.output, moved, *pulled]

        try:
            traced = _without_writing(product, (list(given), residual, v, u))
        except Exception as error:
            raise RuntimeError(
                f"compile: the model cannot be traced ({type(error).__name__}: {error}). What it does may not depend "
                "on the values of tensors; leave compile=False"
            ) from error
        arrivals = [_FORWARD] * len(given) + [_BACKWARD] + [_TANGENTS] * len(v) + [_PULL_BACK]
        ready = [_FORWARD, _TANGENTS] + [_PULL_BACK] * len(v)
        return Partition(traced, arrivals, ready, self._compile)

    def _compile(self, code: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
        compiled = torch.compile(code, backend=self._backend, dynamic=False, fullgraph=True)
        if self._device.type != "cuda":
            return compiled

        def in_a_fixed_order(*values: Tensor) -> Sequence[Tensor]:
            with deterministic_algorithms():
                return compiled(*values)

        return in_a_fixed_order


class CompiledJacobian(Linearisation):
    """Products with J and its transpose by compiled stages."""

    def __init__(
        self,
        staged: Partition,
        values: Values,
        point: LossPoint,
        parameters: Sequence[Tensor],
        first: int,
    ) -> None:
        super().__init__(point, first)
        self._staged = staged
        self._values = values
        self._parameters = parameters

    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        (moved,), _ = self._staged.run(_TANGENTS, self._values, _plain(v))
        return moved

    def vjp(self, u: Tensor, last: bool = False) -> list[Tensor]:
        pulled, _ = self._staged.run(_PULL_BACK, self._values, _plain([u]))
        return pulled

    def nbytes(self) -> int:
        return _bytes(self._values, self._parameters)


class CompiledHessian(SecondDerivatives):
    """Products with second derivatives by compiled stages."""

    def __init__(
        self, staged: Partition, values: Values, point: LossPoint, parameters: Sequence[Tensor]
    ) -> None:
        self.point = point
        self._staged = staged
        self._values = values
        self._parameters = parameters

    def hvp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        return self._second(v, lambda moved: self.point.hessian_mm(moved.unsqueeze(0)).squeeze(0))

    def model_curvature_vp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        return self._second(v, torch.zeros_like)

    def _second(self, v: Sequence[Tensor], curve: Callable[[Tensor], Tensor]) -> list[Tensor]:
        (moved,), values = self._staged.run(_TANGENTS, self._values, _plain(v))
        pulled, _ = self._staged.run(_PULL_BACK, values, _plain([curve(moved)]))
        return pulled

    def nbytes(self) -> int:
        return _bytes(self._values, self._parameters)


class _Open(LossPoint):
    """A loss point in a trace: its residual is an input, and so is what H_ℓ gives."""

    def __init__(self, residual: Tensor, u: Tensor) -> None:
        self.residual = residual
        self._u = u
        #: the argument of H_ℓ: J v
        self.moved: Tensor | None = None

    def hessian_mm(self, u: Tensor) -> Tensor:
        self.moved = u.squeeze(0)
        return self._u.unsqueeze(0)


def _without_writing(
    function: Callable[..., list[Tensor]], arguments: tuple[Any, ...]
) -> fx.GraphModule:
    """The trace of a function of nested lists of tensors, as one of flat tensors that writes to none."""
    traced = make_fx(function)(*arguments)
    flat, structure = pytree.tree_flatten(arguments)

    def of_flat(*flat: Tensor) -> list[Tensor]:
        return traced(*pytree.tree_unflatten(list(flat), structure))

    with torch.no_grad():
        pure = make_fx(torch.func.functionalize(of_flat))(*(t.detach() for t in flat))
    for node in pure.graph.nodes:
        # a compiler trusts the strides of fake tensors, which for some operations differ from the real ones
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    return pure


def _distinct(several: Sequence[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in several}.values())


def _aliases(batch: Any) -> list[int]:
    """Which tensors of a batch are the same object: a trace would confuse them."""
    ids = [id(t) for t in tensors(batch)]
    return [ids.index(i) for i in ids]


def _form(batch: Any) -> str:
    """Equal for two batches that differ in the values of tensors alone."""
    if isinstance(batch, Mapping):
        return repr([(key, _form(value)) for key, value in batch.items()])
    return repr(pytree.tree_map(_shape, batch))


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)


def _plain(several: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as compiled code takes them: contiguous, and not of inference mode."""
    return [t.clone() if t.is_inference() else t.contiguous() for t in several]


def _bytes(values: Values, parameters: Sequence[Tensor]) -> int:
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in values.values()}
    own = {p.untyped_storage().data_ptr() for p in parameters}
    return sum(size for pointer, size in sizes.items() if pointer not in own)
