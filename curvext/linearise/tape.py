"""The tape: one backward pass in which every parameter's per-sample gradients come by and are used up.

The pass goes through the nodes that use parameters but computes no parameter's gradient: at each such
node its inputs a and the gradient g at its output are at hand, are handed to the visitor in canonical
form, and are gone when the pass has moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext import data
from curvext.linearise.attention import UNORDERED, in_fixed_order
from curvext.linearise.autograd_graph import Graph, leaf_variable
from curvext.linearise.layout import Layout, Probe, sketch
from curvext.linearise.partners import partners
from curvext.linearise.plan import Plan, PlanBook, Schedule, Site
from curvext.linearise.rules import Saved, rule_for
from curvext.linearise.selections import Arrangement
from curvext.linearise.uses import OuterUse, RowsUse, TiedUse, Use, join


class Visitor(Protocol):
    """What is done with per-sample gradients as they come by."""

    def use(self, parameter: int, use: Use, arrange: Arrangement) -> None:
        """A use of some of the parameter's elements: ``arrange`` shows a tensor of its shape as they lie there."""

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """The whole gradient of one sample by one parameter."""


class Tape:
    """One batch and its forward graph, ready to be played backwards.

    Args:
        output: f with its graph, ``[N, ...]``.
        parameters: the leaves θ.
        plans: what is known of graphs of this model.
        rerun: a batch → its output with a new graph.
        batch: the batch.
        first: index of its first datum among all.
    """

    def __init__(
        self,
        output: Tensor,
        parameters: Sequence[Tensor],
        plans: PlanBook,
        rerun: Callable[[Any], Tensor],
        batch: Any,
        first: int,
    ) -> None:
        self.first = first
        self.samples = int(output.shape[0])
        self._output = output
        self._parameters = list(parameters)
        self._plans = plans
        self._rerun = rerun
        self._batch = batch

    @property
    def output(self) -> Tensor:
        """f with its graph, ``[N, ...]``."""
        return self._output

    @cached_property
    def _graph(self) -> Graph | None:
        return Graph(self._output, self._parameters) if self._output.requires_grad else None

    @cached_property
    def _plan(self) -> Plan:
        assert self._graph is not None
        return self._make_plan(self._graph)

    def paths(self) -> dict[int, str]:
        """For each parameter the path its per-sample gradients take."""
        if self._graph is None:
            return dict.fromkeys(range(len(self._parameters)), "unused")
        return {i: route.path for i, route in enumerate(self._plan.routes)}

    def partners(self) -> dict[int, int]:
        """{bias: weight} by number, of biases that are used with that weight alone, and with each of its uses."""
        return {} if self._graph is None else partners(self._graph)

    def written_out(self, summands: bool) -> int:
        """How many elements of per-sample gradients :meth:`play` will hand over written out."""
        if self._graph is None:
            return 0
        parted = {"fused", "tied", "unused", *(["overlapping"] if summands else [])}
        return self.samples * sum(
            p.numel()
            for p, route in zip(self._parameters, self._plan.routes, strict=True)
            if route.path not in parted
        )

    def play(
        self, visitor: Visitor, cotangent: Tensor, *, summands: bool = False, keep: bool = False
    ) -> None:
        """Hands the per-sample gradients of every parameter to ``visitor``.

        Args:
            visitor: takes them.
            cotangent: ``[N, ...]`` like the output; the gradient of sample n is J_nᵀ cotangent_n.
            summands: whether the gradient of a parameter may come as several uses that overlap, to be
                added. False for what is not linear in the gradient.
            keep: whether the tape will be played again; otherwise its graph is freed on the way.
        """
        graph = self._graph
        if graph is None:
            return
        schedule = self._plan.schedule(graph, summands)
        waiting = _Waiting(graph, self._plan, schedule, visitor, self.samples, summands)

        def arrived(position: int, gradient: Tensor) -> None:
            for i in schedule.at_node[position]:
                waiting.arrived(i, gradient)

        nodes, lowest = schedule.at_node.keys(), schedule.lowest
        _gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, keep)
        waiting.finish()
        if waiting.declined:
            self._plan.reroute(graph)
        self._one_by_one(visitor, cotangent, waiting.declined)

    # ------------------------------------------------------------------ the general path

    def _one_by_one(self, visitor: Visitor, cotangent: Tensor, declined: set[int]) -> None:
        """The general path: a backward pass for each sample, of a forward pass of that sample alone
        where the model allows it, else through the whole batch."""
        general = {i for i, route in enumerate(self._plan.routes) if route.path == "general"}
        numbers = sorted(general | declined)
        if not numbers:
            return
        parameters = [self._parameters[i] for i in numbers]
        whole: Tensor | None = None
        for n in range(self.samples):
            alone = self._alone(n) if whole is None else None
            if alone is not None:
                gradients = torch.autograd.grad(
                    alone, parameters, cotangent[n : n + 1], allow_unused=True
                )
            else:
                whole = self._rerun(self._batch) if whole is None else whole
                only = torch.zeros_like(cotangent)
                only[n] = cotangent[n]
                gradients = torch.autograd.grad(
                    whole, parameters, only, retain_graph=True, allow_unused=True
                )
            for i, gradient in zip(numbers, gradients, strict=True):
                if gradient is not None:
                    visitor.gradient(i, n, gradient.to_dense() if gradient.is_sparse else gradient)

    def _alone(self, n: int) -> Tensor | None:
        """The output of sample n by itself, if the model gives there what it gave in the batch."""
        if self.samples == 1:
            return self._rerun(self._batch)
        expected = self._output.detach()[n : n + 1]
        try:
            output = self._rerun(data.sample(self._batch, n, self.samples))
        except (RuntimeError, ValueError, IndexError):
            return None  # this model cannot take a part of its batch
        if output.shape != expected.shape:
            return None
        tolerance = 64 * torch.finfo(output.dtype).eps * float(self._output.detach().abs().max())
        close = torch.allclose(output.detach(), expected, rtol=0, atol=tolerance)
        return output if close else None

    # ------------------------------------------------------------------ knowing the layout

    def _make_plan(self, graph: Graph) -> Plan:
        plan = self._plans.get(graph, self.samples)
        if plan is None or not self._confirm(graph, plan):
            plan = Plan(graph, len(self._parameters), lambda nodes: self._layouts(graph, nodes))
            self._plans.put(graph, self.samples, plan)
        return plan

    def _confirm(self, graph: Graph, plan: Plan) -> bool:
        """Whether the layouts known are unambiguous at this batch's sizes; asks again where they are not."""
        unclear = {
            site.node
            for site in plan.sites
            if not _unambiguous(site.layouts, graph.shape(site.node), self.samples)
        }
        if not unclear:
            return True
        now = self._layouts(graph, unclear)
        for site in plan.sites:
            if site.node in now:
                site.layouts = site.layouts & now[site.node]
        return all(site.layouts for site in plan.sites)

    def _layouts(self, graph: Graph, nodes: set[int]) -> dict[int, set[Layout]]:
        if not nodes:
            return {}
        if self.samples == 1:
            return {i: {Layout(d, True) for d in range(max(1, len(graph.shape(i))))} for i in nodes}
        probe = Probe(self._output)
        lowest = graph.bottom(nodes)
        sketches = []
        with _repeatable(graph):
            for cotangent in (probe.plain, probe.scaled):
                seen: dict[int, Any] = {}

                def arrived(position: int, gradient: Tensor, seen: dict[int, Any] = seen) -> None:
                    seen[position] = sketch(gradient)

                _gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, retain=True)
                sketches.append(seen)
        return {
            i: probe.layouts(graph.shape(i), sketches[0][i], sketches[1][i])
            if i in sketches[0]
            else set()
            for i in nodes
        }


def _unambiguous(layouts: set[Layout], shape: Sequence[int], samples: int) -> bool:
    first = next(iter(layouts))
    return samples == 1 or all(
        layout.fits(shape, samples) and layout.same_for(first, shape, samples) for layout in layouts
    )


def _gradients_at(
    graph: Graph,
    output: Tensor,
    cotangent: Tensor,
    nodes: Set[int],
    lowest: Set[int],
    arrived: Callable[[int, Tensor], None],
    retain: bool,
) -> None:
    """One backward pass that reports the gradient at the output of each of ``nodes`` and stops there.

    The engine runs a node only if something below it was asked for, so the lowest of them are asked
    for by edge and the others report by a hook as the pass goes through.
    """
    if not nodes:
        return

    def hook_for(position: int) -> Callable[[tuple[Tensor, ...]], None]:
        def hook(gradients: tuple[Tensor, ...]) -> None:
            if gradients[0] is not None:
                arrived(position, gradients[0])

        return hook

    with _removed_after() as handles:
        for position in nodes - lowest:
            handles.append(graph.nodes[position].register_prehook(hook_for(position)))
        edges = [GradientEdge(graph.nodes[position], 0) for position in lowest]
        gradients = torch.autograd.grad(
            output, edges, cotangent, retain_graph=retain, allow_unused=True
        )
    for position, gradient in zip(lowest, gradients, strict=True):
        if gradient is not None:
            arrived(position, gradient)


@contextmanager
def _repeatable(graph: Graph) -> Iterator[None]:
    """Two passes are compared to the last bit, so fused attention of CUDA gives its gradients in closed form."""
    with _removed_after() as handles:
        for node, name in zip(graph.nodes, graph.names, strict=True):
            if name in UNORDERED:
                handles.append(node.register_hook(in_fixed_order(node)))
        yield


@contextmanager
def _removed_after() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _is_identity(arrange: Arrangement, shape: torch.Size) -> bool:
    """Whether a matrix is used as it is, and not its transpose."""
    seen = arrange(torch.empty(shape, device="meta"))
    return seen.shape == shape and seen.is_contiguous()


class _Waiting:
    """Uses that have come by but cannot be handed on yet: until all of their parameter are there."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        schedule: Schedule,
        visitor: Visitor,
        samples: int,
        summands: bool,
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._schedule = schedule
        self._visitor = visitor
        self._samples = samples
        self._summands = summands
        self._uses: dict[int, Use] = {}
        self._missing = dict(schedule.uses)
        #: parameters of which a use turned out to be beyond its rule
        self.declined: set[int] = set()

    def arrived(self, number: int, gradient: Tensor) -> None:
        """The gradient at a site's node is there: make the use, hand on what is complete."""
        site = self._plan.sites[number]
        use = self._make_use(site, gradient.detach())
        if use is None:
            site.usable = False
            self.declined |= self._plan.parameters_of(site)
            return
        self._uses[number] = use
        parameter = self._schedule.owner.get(number)
        if parameter is not None:
            self._missing[parameter] -= 1
            if self._missing[parameter] == 0:
                self._hand_on(parameter)

    def _make_use(self, site: Site, gradient: Tensor) -> Use | None:
        rule = rule_for(self._graph.names[site.node], site.edge)
        assert rule is not None
        shape = self._graph.shape(*site.derived)
        saved = Saved(self._graph.nodes[site.node])
        for layout in site.layouts:
            use = rule(saved, gradient, layout, self._samples, shape)
            if use is not None:
                return use
        return None

    def _hand_on(self, parameter: int) -> None:
        route = self._plan.routes[parameter]
        found: list[tuple[Use, Arrangement]] = []
        for group in route.groups:
            uses = [self._uses.pop(i) for i in group if i in self._uses]
            if uses:
                arrange = route.arrangements[group[0]].on(self._graph)
                found.append((join(uses, self._samples), arrange))
        if route.path == "tied" and len(found) == 2 and not self._summands:
            (matrix, arrange_matrix), (table, arrange) = found
            assert isinstance(matrix, OuterUse) and isinstance(table, RowsUse)
            turned = not _is_identity(arrange_matrix, table.shape)
            tied = TiedUse(matrix.turned() if turned else matrix, table, self._samples)
            found = [(tied, arrange)]
        for use, arrange in found:
            self._visitor.use(parameter, use, arrange)

    def finish(self) -> None:
        """Hands on the parameters of which some use was not reached by the gradient, and the formed ones."""
        for parameter in sorted(self._schedule.by_use - self.declined):
            if self._missing[parameter]:
                self._hand_on(parameter)
        self._form()

    def _form(self) -> None:
        graph, plan = self._graph, self._plan
        parameters = sorted(self._schedule.by_sample - self.declined)
        sites = [i for i in sorted(self._schedule.shared) if i in self._uses]
        if not parameters or not sites:
            return
        derived = [plan.sites[i].derived for i in sites]
        edges = [GradientEdge(graph.nodes[node], which) for node, which in derived]
        leaf = {
            number: leaf_variable(graph.nodes[position])
            for position, number in graph.parameter_at.items()
        }
        leaves = [leaf[p] for p in parameters]
        for n in range(self._samples):
            cotangents = [
                self._uses[i].sample(n).reshape(graph.shape(*d))
                for i, d in zip(sites, derived, strict=True)
            ]
            gradients = torch.autograd.grad(
                edges, leaves, cotangents, retain_graph=True, allow_unused=True
            )
            for p, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    self._visitor.gradient(p, n, gradient)
