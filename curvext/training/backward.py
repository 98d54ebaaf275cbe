"""``backward``: replaces ``losses.mean().backward()`` and computes per-sample quantities in the same pass.

One file because it is one call, with its refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from curvext.dtypes import dtype_of_sums
from curvext.per_sample.backward_pass import BackwardPass
from curvext.torch_internals.hooks import backward_hooks_set_aside, has_backward_hooks
from curvext.training import graph_checks
from curvext.training import parameters as trained_parameters
from curvext.training.arguments import (
    check_dtype,
    check_flags,
    check_losses,
    given_weights,
    weights_of,
)
from curvext.training.hook_check import OneSample, hooks_may_be_new, remember
from curvext.training.parameters import Trained
from curvext.training.sums import StepSums

Weights = None | Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class BackwardResult:
    """The per-sample quantities from :func:`backward`.

    Attributes:
        norms: ``[N]``, ‖g_n‖ with g_n = ∇losses[n]; None if it was not asked for.
        squares: ``{name: tensor}``, Σ_n g_n², without weights; None if it was not asked for.
        weights: ``[N]``, the weights of the samples as used.
        paths: ``{name: words}``, how the per-sample gradients of each parameter were computed; "autograd" where none
            were needed.
    """

    norms: Tensor | None
    squares: dict[str, Tensor] | None
    weights: Tensor
    paths: dict[str, str] = field(repr=False)


def backward(
    losses: Tensor,
    parameters: nn.Module | Iterable[Any] | Mapping[str, Tensor],
    weights: Weights = None,
    norms: bool = False,
    squares: bool = False,
    retain_graph: bool = False,
    *,
    dtype: torch.dtype | None = None,
    create_graph: bool = False,
) -> BackwardResult:
    """In place of ``losses.mean().backward()``: the gradient, and per-sample quantities of the same backward pass.

        p.grad += Σ_n w_n g_n,    g_n = ∇losses[n]

    Nothing is rerun, so whatever is in the graph counts as it is: dropout with its masks, autocast, a loss of your own.
    The sums go into ``.grad`` through PyTorch's own accumulation: in the parameter's dtype, added to what is there,
    with the hooks on parameters, those of DistributedDataParallel included, which averages over ranks as always.
    Hooks on other tensors of the graph see the gradient of the sum of the losses, and must not mix samples: where
    hooks were made since the last call, one sample's gradient is computed by itself and compared, by one more pass.

    Args:
        losses: ``[N]``, one loss for each sample, with the graph; finite.
        parameters: a module, or an iterable or mapping of parameters; those that do not require grad are left alone.
        weights: w. None for 1/N; ``[N]``; or a function of the norms ``[N]`` (without graph) that gives ``[N]``:
            ``lambda n: (bound / n).clamp(max=1) / len(n)`` clips each sample's gradient to a norm of ``bound``.
        norms: whether ‖g_n‖ is wanted. Of scaled losses (``GradScaler``) it is scaled likewise.
        squares: whether Σ_n g_n² is wanted.
        retain_graph: whether the graph is kept for another backward pass.
        dtype: of norms and squares; None for float32 where parameters are in bf16 or fp16, else the parameters' own.
        create_graph: must be False: gradients come without a graph.

    Returns:
        :class:`BackwardResult`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it. Nothing has been added to ``.grad`` then.
        ValueError: samples have no gradients of their own (batch norm in training mode), or the graph is closed to us
            (``torch.compile``, reentrant checkpointing): if norms, squares or a function of norms are asked for.

    Cost: one backward pass of the network. Instead of each weight gradient its norms, squares and weighted sum are
        made from layer inputs and output gradients; with a function of norms these are held until the weights are
        known. An operation without a rule costs one backward pass for each sample on this graph, as ``paths`` says.
        Without norms, squares and a function it is ``torch.autograd.backward``.

    Source: norms without gradients: Goodfellow 2015 (arXiv:1510.01799); clipping through them: Li et al. 2022
        (arXiv:2110.05679).

    Example:
        >>> import torch, curvext as cx
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> losses = model(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).squeeze(1)
        >>> out = cx.backward(losses, model, weights=lambda n: (2 / n).clamp(max=1) / len(n))
        >>> out.norms, out.weights, model.weight.grad
        (tensor([5., 1.]), tensor([0.2000, 0.5000]), tensor([[0.6000, 1.3000]]))
    """
    check_losses(losses)
    check_flags(norms=norms, squares=squares, retain_graph=retain_graph)
    check_dtype(dtype)
    if create_graph is not False:
        raise ValueError(
            "backward: create_graph: the gradients of curvext.backward have no graph; use torch.autograd.grad(..., "
            "create_graph=True), or curvext.HessianOperator for second derivatives"
        )
    trained = trained_parameters.of(parameters)
    given = None if callable(weights) else given_weights(weights, losses)
    below = {id(leaf) for leaf in graph_checks.leaves_below(losses)}
    reached = {name: p for name, p in trained.leaves.items() if id(p) in below}
    if not reached:
        raise ValueError(
            "losses: their graph leads to none of the parameters; was the model called under torch.no_grad, or are "
            "these the parameters of another one?"
        )
    if given is not None and not norms and not squares:
        # other leaves, inputs that require grad, say, are not ours to add to
        only = None if len(reached) == len(below) else list(reached.values())
        torch.autograd.backward(losses, given.to(losses.dtype), retain_graph, inputs=only)
        return BackwardResult(None, None, given, dict.fromkeys(trained.leaves, "autograd"))
    step = _Step(losses, trained, reached, retain_graph)
    return step.run(given if given is not None else weights, norms, squares, dtype)  # type: ignore[arg-type]


class _Step:
    """One call that needs per-sample gradients."""

    def __init__(
        self, losses: Tensor, trained: Trained, reached: dict[str, Tensor], retain_graph: bool
    ) -> None:
        graph_checks.check(losses, trained.module)
        ddp = trained.replicated
        if ddp is not None and getattr(ddp, "static_graph", False):
            raise ValueError(
                "parameters: DistributedDataParallel(static_graph=True) counts the passes over its graph; leave "
                "static_graph out, or call curvext.backward without norms, squares and a function of norms"
            )
        self._losses = losses
        self._trained = trained
        self._reached = reached
        self._leaves = list(reached.values())
        self._retain = retain_graph
        self._pass = BackwardPass(losses, self._leaves, trained.plans, rerun=None)

    def run(
        self,
        weights: Tensor | Callable[[Tensor], Tensor],
        norms: bool,
        squares: bool,
        dtype: torch.dtype | None,
    ) -> BackwardResult:
        given = weights if isinstance(weights, Tensor) else None
        check = OneSample(self._losses, self._leaves) if hooks_may_be_new() else None
        measure = norms or given is None
        sums = StepSums(self._leaves, len(self._losses), measure, squares, given, check)
        with torch.enable_grad(), backward_hooks_set_aside(self._leaves), _checkpoints_named():
            # materialised gradients are summed by a further pass, once the weights are known
            further = given is None and self._pass.materialised(allow_overlap=False) > 0
            keep = self._retain or further or check is not None
            self._pass.run(sums, torch.ones_like(self._losses), keep=keep)
            paths = self._paths()  # a rule may have declined on the way
            if check is not None:
                check.check()
            remember()
            found = sums.norms() if measure else None
            if given is None:
                assert found is not None and not isinstance(weights, Tensor)
                given = weights_of(weights, found)
                sums.weigh(given)
            gradients = self._gradients(sums, given, linear=check is None)
        own = {name: dtype or dtype_of_sums(p.dtype) for name, p in self._reached.items()}
        named = self._squares(sums.squares(), own, dtype) if squares else None
        _accumulate(self._leaves, gradients)
        if found is not None:
            found = found.to(dtype or found.dtype)
        return BackwardResult(found, named, given, paths)

    def _paths(self) -> dict[str, str]:
        told = dict(zip(self._reached, self._pass.paths().values(), strict=True))
        return {name: told.get(name, "unused") for name in self._trained.leaves}

    def _gradients(self, sums: StepSums, weights: Tensor, linear: bool) -> list[Tensor | None]:
        """Σ_n w_n g_n by parameter: from the uses, and by one more pass for materialised gradients.

        A hook need not be ``linear`` in the gradient; then samples are taken one by one again.
        """
        blocks: list[Tensor | None] = [
            block.to(p.dtype) if i in sums.summed else None
            for i, (block, p) in enumerate(zip(sums.sums(), self._leaves, strict=True))
        ]
        written = sorted(sums.written)
        if written:
            rest = self._again([self._leaves[i] for i in written], weights, linear)
            for i, gradient in zip(written, rest, strict=True):
                blocks[i] = gradient
        return blocks

    def _again(
        self, leaves: list[Tensor], weights: Tensor, linear: bool
    ) -> Sequence[Tensor | None]:
        """Σ_n w_n g_n for leaves whose gradients were materialised before the weights were known."""
        weights = weights.to(self._losses.dtype)
        if linear:
            return torch.autograd.grad(
                self._losses, leaves, weights, retain_graph=self._retain, allow_unused=True
            )
        totals = [torch.zeros_like(p, requires_grad=False) for p in leaves]
        for n, weight in enumerate(weights):
            alone = torch.zeros_like(weights)
            alone[n] = 1
            found = torch.autograd.grad(
                self._losses, leaves, alone, retain_graph=True, allow_unused=True
            )
            for total, g in zip(totals, found, strict=True):
                if g is not None:
                    total += weight.to(total.dtype) * g
        return totals

    def _squares(
        self, blocks: Sequence[Tensor], own: dict[str, torch.dtype], dtype: torch.dtype | None
    ) -> dict[str, Tensor]:
        found = {name: b.to(own[name]) for name, b in zip(self._reached, blocks, strict=True)}
        return {
            name: found[name]
            if name in found
            else torch.zeros_like(p, dtype=dtype or dtype_of_sums(p.dtype), requires_grad=False)
            for name, p in self._trained.leaves.items()
        }


def _accumulate(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds to ``.grad`` by a pass whose roots are the leaves, so that PyTorch accumulates and runs all hooks.

    PyTorch would copy the gradient of a leaf that has none yet. So the gradient is assigned first and zeros are
    added, unless a hook on the leaf needs to see it.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for p, g in zip(leaves, gradients, strict=True):
        if g is None:
            continue
        if p.grad is None and not has_backward_hooks(p) and g.stride() == p.stride():
            p.grad, g = g, torch.zeros((), dtype=g.dtype, device=g.device).expand(p.shape)
        pairs.append((p, g))
    torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])


@contextmanager
def _checkpoints_named() -> Iterator[None]:
    """Turns the error of a checkpointed region, whose tensors can be read only once, into one that names the cure."""
    try:
        yield
    except CheckpointError as error:
        raise ValueError(
            "losses: activation checkpointing hands its recomputed tensors to PyTorch's backward pass alone; leave "
            "checkpointing out, or call curvext.backward without norms, squares and a function of norms"
        ) from error
