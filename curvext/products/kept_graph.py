"""J v, Jᵀ u and second derivatives on PyTorch's own graph, kept: the network runs once, products follow.

One file because J v, Jᵀ u and second derivatives use one graph, and each knows what the others keep of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvext.errors import NoSecondDerivativeError
from curvext.evaluation.hooks import HAS_NO_SECOND_DERIVATIVE, check_adjoint, check_linear
from curvext.graph.autograd_graph import Graph, nodes_below, saved_bytes
from curvext.losses import LossPoint
from curvext.operations.table import operation
from curvext.products.gradient_graph import GradientGraph
from curvext.products.jacobian_rows import JacobianRows
from curvext.products.linearisation import Linearisation, SecondDerivatives
from curvext.products.tangents import Tangents


class _OutputCurvature:
    """A switch for the residual's derivative: H_ℓ, or zero for the model-curvature term."""

    def __init__(self, point: LossPoint) -> None:
        self.point = point
        self.active = True


class _Residual(torch.autograd.Function):
    """r(f) = ∂ℓ/∂f as a function of the output, with the kernel H_ℓ u as its derivative.

    It puts the closed-form output Hessian into the middle of PyTorch's double backward, so that
    H v = Jᵀ H_ℓ J v + Σ_c r_c ∂²f_c v comes out of one pass, its first part by the kernel.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, curvature: _OutputCurvature) -> Tensor:
        ctx.curvature = curvature
        return curvature.point.residual.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.curvature.active:
            return None, None
        return ctx.curvature.point.hessian_mm(u.unsqueeze(0)).squeeze(0), None


class KeptGraph(Linearisation, SecondDerivatives):
    """PyTorch's own graph of the output f, kept.

    J v carries tangents up the kept graph, Jᵀ u goes down it; neither runs the network. For second
    derivatives the first backward pass is kept with its graph too, w = Jᵀ r: differentiating w by θ
    gives them in one pass. Where a node of the graph has no tangent, w differentiated by r is J v.

    Args:
        output: f with its graph, ``[N, ...]``.
        point: the loss at f.
        parameters: the leaves θ.
        first: index of the batch's first datum among all.
        checked: whether it is known already that all operations can be differentiated twice, as in a trace.
        hooked: whether the forward pass put hooks on tensors. Tangents would bypass them, so J v comes from backward
            passes, each product is checked, and second derivatives are refused.
    """

    def __init__(
        self,
        output: Tensor,
        point: LossPoint,
        parameters: Sequence[Tensor],
        first: int,
        *,
        checked: bool = False,
        hooked: bool = False,
    ) -> None:
        super().__init__(point, first)
        self._hooked = hooked
        self._rows: JacobianRows | None = None
        self.output = output
        self._parameters = list(parameters)
        self._curvature = _OutputCurvature(point)
        self._tangents: Tangents | None = None
        self._gradient_graph: GradientGraph | None = None
        #: operations without second derivative, which J v needs too where they have no tangent
        self._once_differentiable: set[str] = set()
        #: whether this graph has second derivatives: fused attention has none
        self.twice_differentiable = True
        if not output.requires_grad:
            return
        self._graph = Graph(output, self._parameters)
        self.twice_differentiable = not any(
            operation(name).once_differentiable for name in self._graph.names
        )
        if hooked:
            self.twice_differentiable = False
            if not JacobianRows.fit(output, self._parameters):
                self._keep_gradient()
            return
        missing = Tangents.missing(self._graph)
        if not missing:
            self._tangents = Tangents(self._graph)
            return
        if not checked:
            self._once_differentiable = self._graph.once_differentiable(among=missing)
        if not self._once_differentiable:
            self.keep_gradient()

    def keep_gradient(self) -> None:
        """Keeps the first backward pass with its graph, which second derivatives need."""
        if self._hooked and self.output.requires_grad:
            raise RuntimeError(f"model: {HAS_NO_SECOND_DERIVATIVE}")
        self._keep_gradient()

    def _keep_gradient(self) -> None:
        if self._gradient_graph is not None or not self.output.requires_grad:
            return
        _refuse(self._once_differentiable)
        residual = _Residual.apply(self.output, self._curvature)
        self._gradient_graph = GradientGraph(
            self._graph, self.output, residual, self._parameters, whole=self._hooked
        )

    def jvp(self, v: Sequence[Tensor]) -> Tensor:
        if self._once_differentiable:
            _refuse(self._once_differentiable)
        product: Tensor | None = None
        if self._hooked and self._gradient_graph is None and self.output.requires_grad:
            self._rows = self._rows or JacobianRows(self.output, self._parameters)
        if self._rows is None:
            try:
                if self._tangents is not None:
                    (product,) = self._tangents.of(v)
                else:
                    product = self._directional(v)
            except RuntimeError as error:
                if not _lacks_a_derivative(error):
                    raise
                if not JacobianRows.fit(self.output, self._parameters):
                    raise _without_second_derivative(error) from error
                self._rows = JacobianRows(self.output, self._parameters)
        if self._rows is not None:
            product = self._rows.jvp(v)
        product = torch.zeros_like(self.output) if product is None else product
        if self._hooked:
            u = torch.cos(torch.arange(product.numel(), device=product.device)).to(product)
            u = u.view_as(product)
            check_adjoint(v, product, u, self.vjp(u))
        return product

    def _directional(self, v: Sequence[Tensor]) -> Tensor | None:
        """J v as the derivative of w = Jᵀ r by r; None where nothing depends on the parameters."""
        if self._gradient_graph is None:
            return None
        first = self._gradient_graph
        values, cotangents = first.paired_with(v, weights_move=False)
        if not values:
            return None
        return torch.autograd.grad(
            values, first.residual, cotangents, retain_graph=True, allow_unused=True
        )[0]

    def vjp(self, u: Tensor, last: bool = False) -> list[Tensor]:
        if not self.output.requires_grad:
            return [torch.zeros_like(p) for p in self._parameters]
        retain = self.kept or not last or self._hooked
        products = dense_or_zeros(self._pulled(u, retain), self._parameters)
        if self._hooked:
            check_linear(lambda scaled: self._pulled(scaled, True), u, products)
        return products

    def _pulled(self, u: Tensor, retain: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            self.output, self._parameters, u, retain_graph=retain, allow_unused=True
        )

    def hvp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        return self._second(v, True, last)

    def model_curvature_vp(self, v: Sequence[Tensor], last: bool = False) -> list[Tensor]:
        return self._second(v, False, last)

    def _second(self, v: Sequence[Tensor], active: bool, last: bool) -> list[Tensor]:
        if self._gradient_graph is None:
            return [torch.zeros_like(p) for p in self._parameters]
        values, cotangents = self._gradient_graph.paired_with(v)
        if not values:
            return [torch.zeros_like(p) for p in self._parameters]
        self._curvature.active = active
        try:
            products = torch.autograd.grad(
                values,
                self._parameters,
                cotangents,
                retain_graph=self.kept or not last,
                allow_unused=True,
            )
        except RuntimeError as error:
            if _lacks_a_derivative(error):
                raise _without_second_derivative(error) from error
            raise
        return dense_or_zeros(products, self._parameters)

    def nbytes(self) -> int:
        held = [] if self._gradient_graph is None else self._gradient_graph.tensors
        roots = [t.grad_fn for t in (self.output, *held) if t.grad_fn is not None]
        rows = 0 if self._rows is None else self._rows.nbytes()
        return (
            rows
            + saved_bytes(nodes_below(*roots))
            + sum(t.numel() * t.element_size() for t in held)
        )


def check_twice_differentiable(output: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raises a RuntimeError that names the operations behind ``output`` which have no second derivative."""
    if output.requires_grad:
        graph = Graph(output, parameters)
        _refuse(graph.once_differentiable(among=Tangents.missing(graph)))


def _lacks_a_derivative(error: Exception) -> bool:
    """Whether it is PyTorch's error of an operation whose backward cannot be differentiated."""
    text = str(error)
    return isinstance(error, NotImplementedError) or (
        "derivative for" in text and "not implemented" in text
    )


def _without_second_derivative(error: Exception) -> NoSecondDerivativeError:
    return NoSecondDerivativeError(
        f"an operation of the model has no second derivative in PyTorch ({error}). H needs one, and so does G where "
        "outputs are too many to have J row by row. Write it in other operations, freeze what lies before it with "
        "params=, or use smaller batches for G. (The gradient, F_emp and the diagonals of G and F work.)"
    )


def _refuse(once_differentiable: set[str]) -> None:
    if once_differentiable:
        raise NoSecondDerivativeError(
            f"{', '.join(sorted(once_differentiable))} has no second derivative: its backward is marked "
            "once_differentiable, or computes what PyTorch does not see (a kernel of its own, numpy, detach). H needs "
            "one, and so does G, whose J v is the derivative of a backward pass. Write it in operations of PyTorch, or "
            "freeze what lies before it with params=. (The gradient, F_emp and the diagonals of G and F work.)"
        )


def dense_or_zeros(products: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """One dense tensor per parameter, zeros for those that nothing reached."""
    found: list[Tensor] = []
    for g, p in zip(products, like, strict=True):
        if g is None:
            found.append(torch.zeros_like(p))
        else:
            found.append(g.to_dense() if g.is_sparse else g)
    return found
