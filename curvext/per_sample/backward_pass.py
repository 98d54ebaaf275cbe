"""One backward pass in which the per-sample gradients of every parameter are formed and used up.

The pass goes through the nodes that use parameters but computes no parameter's gradient: at each such
node its inputs a and the gradient g at its output are at hand, are handed to the consumer in canonical
form, and are gone when the pass has moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext.gradients.joined import TiedGradient, join
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient
from curvext.gradients.structured import StructuredGradient
from curvext.graph.autograd_graph import Graph, leaf_variable
from curvext.operations.node import DetachedSaved, Node
from curvext.operations.operation import OutputGradient
from curvext.operations.table import operation
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.one_by_one import OneByOne
from curvext.per_sample.parameter_uses import Schedule, Site
from curvext.per_sample.partners import Wiring, partners
from curvext.per_sample.plan_cache import Finding, PlanCache
from curvext.per_sample.probe import Probe, Sketch, drawn_like
from curvext.samples.layout import Layout


class Consumer(Protocol):
    """What is done with per-sample gradients as they come by."""

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """A use of some of the parameter's elements: ``arrange`` shows a tensor of its shape as they lie there."""

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """The whole gradient of one sample by one parameter."""


class BackwardPass:
    """One batch and its forward graph, ready to be played backwards.

    Args:
        output: f with its graph, ``[N, ...]``.
        parameters: the leaves θ.
        plans: what is known of graphs of this model.
        rerun: a batch → its output with a new graph; None if this graph is the only one.
        batch: the batch, for ``rerun``.
        first: index of its first datum among all.
        hooked: whether the forward pass put hooks on tensors, which may mix samples: then all take the general path.
    """

    def __init__(
        self,
        output: Tensor,
        parameters: Sequence[Tensor],
        plans: PlanCache,
        rerun: Callable[[Any], Tensor] | None,
        batch: Any = None,
        first: int = 0,
        hooked: bool = False,
    ) -> None:
        self._hooked = hooked
        self.first = first
        self.samples = int(output.shape[0])
        self._output = output
        self._parameters = list(parameters)
        self._plans = plans
        self._one_by_one = OneByOne(output, self._parameters, rerun, batch)
        self._only_graph = rerun is None
        self._finding: Finding | None = None

    @property
    def output(self) -> Tensor:
        """f with its graph, ``[N, ...]``."""
        return self._output

    @cached_property
    def _graph(self) -> Graph | None:
        return Graph(self._output, self._parameters) if self._output.requires_grad else None

    def _find(self, assume: bool = False) -> Finding:
        """Where samples lie; with ``assume`` what the next pass has to look at may be left to it."""
        assert self._graph is not None
        if self._finding is None or (self._finding.assumed and not assume):
            count = len(self._parameters)
            self._finding = self._plans.find(self._graph, self.samples, count, self._ask, assume)
        return self._finding

    def paths(self) -> dict[int, str]:
        """For each parameter the path its per-sample gradients take, and how its samples are known to lie apart."""
        if self._graph is None:
            return dict.fromkeys(range(len(self._parameters)), "unused")
        if self._hooked:
            return dict.fromkeys(
                range(len(self._parameters)), "general, as there are hooks on tensors"
            )
        finding = self._find()
        told: dict[int, str] = {}
        for i, route in enumerate(finding.plan.routes):
            nodes = {s.node for s in finding.plan.sites if i in finding.plan.parameters_of(s)}
            told[i] = route.path
            if route.path in ("general", "unused"):
                continue
            if nodes & finding.asked:
                told[i] += ", by backward passes"
            elif nodes & finding.by_index:
                told[i] += ", by indices"
            else:
                told[i] += ", by structure"
        return told

    def wiring(self) -> Wiring:
        """How the parameters stand in the graph."""
        graph = self._graph
        if graph is None:
            return Wiring({}, frozenset())
        found, used = partners(graph), frozenset(graph.parameter_at.values())
        if self._hooked:
            return Wiring(found, used)
        paths = {p: r.path for p, r in enumerate(self._find(assume=True).plan.routes)}
        overlapping, tied = (
            frozenset(p for p, path in paths.items() if path == name)
            for name in ("overlapping", "tied")
        )
        return Wiring(found, used, overlapping, tied)

    def materialised(self, allow_overlap: bool) -> int:
        """How many elements of per-sample gradients :meth:`play` will hand over written out."""
        if self._graph is None:
            return 0
        if self._hooked:
            return self.samples * sum(p.numel() for p in self._parameters)
        parted = {"fused", "tied", "unused", *(["overlapping"] if allow_overlap else [])}
        return self.samples * sum(
            p.numel()
            for p, route in zip(self._parameters, self._find(assume=True).plan.routes, strict=True)
            if route.path not in parted
        )

    def run(
        self,
        consumer: Consumer,
        cotangent: Tensor,
        *,
        allow_overlap: bool = False,
        keep: bool = False,
    ) -> None:
        """Hands the per-sample gradients of every parameter to ``consumer``.

        Args:
            consumer: takes them.
            cotangent: ``[N, ...]`` like the output; the gradient of sample n is J_nᵀ cotangent_n.
            allow_overlap: whether the gradient of a parameter may come as several uses that overlap, to be
                added. False for what is not linear in the gradient.
            keep: whether it will run again; otherwise its graph is freed on the way.
        """
        graph = self._graph
        if graph is None:
            return
        if self._hooked:
            every = range(len(self._parameters))
            self._one_by_one.gradients(every, cotangent, consumer.gradient)
            return
        finding = self._find(assume=not keep)
        plan = finding.plan
        schedule = plan.schedule(graph, allow_overlap)
        waiting = _Waiting(graph, finding, schedule, consumer, self.samples, allow_overlap)
        look = self._watch(finding, cotangent)

        def arrived(position: int, gradient: Tensor) -> None:
            if look is not None and position in finding.assumed:
                layouts = look(position, gradient)
                if layouts is None:  # nothing flows
                    return
                if not layouts:
                    waiting.decline(position)
                    return
                finding.layouts[position] = layouts
            for i in schedule.at_node[position]:
                waiting.arrived(i, gradient)

        nodes, lowest = schedule.at_node.keys(), schedule.lowest
        # until every rule has been seen to take its use, the only graph may be needed once more
        unsettled = self._only_graph and (not plan.settled or bool(finding.assumed))
        retain = keep or unsettled or schedule.entangled
        with _repeatable(graph) if finding.assumed else nullcontext():
            _gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, retain)
        waiting.finish()
        if waiting.refused:
            plan.reroute(graph)
        general = {i for i, route in enumerate(plan.routes) if route.path == "general"}
        numbers = sorted(general | waiting.declined)
        if not numbers:
            plan.settled = True
            return
        if not retain and self._only_graph:
            raise RuntimeError(
                f"{sorted(waiting.declined)}: the use of these parameters has changed within one structure of the "
                "graph, so that their per-sample gradients have no fast rule any more; call again"
            )
        self._one_by_one.gradients(numbers, cotangent, consumer.gradient)

    def _ask(self, nodes: set[int]) -> dict[int, tuple[Layout, ...] | None]:
        """The layouts of some gradients by backward passes of this batch; None of one of zeros."""
        assert self._graph is not None
        probe = Probe(drawn_like(self._output))
        sketches = self._sketched(nodes, probe.cotangents)
        return {i: probe.layouts(self._graph.shape(i), sketches[i]) for i in nodes}

    def _watch(
        self, finding: Finding, cotangent: Tensor
    ) -> Callable[[int, Tensor], tuple[Layout, ...] | None] | None:
        """Tells the layouts of the nodes that are assumed to have one, once the pass of a cotangent comes by there."""
        if not finding.assumed:
            return None
        graph, probe = self._graph, Probe(cotangent)
        assert graph is not None
        scaled = self._sketched(finding.assumed, probe.cotangents[1:])
        return lambda i, gradient: probe.layouts(graph.shape(i), [Sketch(gradient), *scaled[i]])

    def _sketched(
        self, nodes: set[int], cotangents: Sequence[Tensor]
    ) -> Mapping[int, list[Sketch]]:
        """A sketch of the gradient at some nodes for each of some cotangents; nothing of a node that none reaches."""
        assert self._graph is not None
        graph, lowest = self._graph, self._graph.bottom(nodes)
        sketches: dict[int, list[Sketch]] = {i: [] for i in nodes}

        def arrived(position: int, gradient: Tensor) -> None:
            sketches[position].append(Sketch(gradient))

        with _repeatable(graph):
            for cotangent in cotangents:
                _gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, retain=True)
        return sketches


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
            in_fixed_order = operation(name).fixed_order
            if in_fixed_order is not None:
                handles.append(node.register_hook(in_fixed_order(Node(node))))
        yield


@contextmanager
def _removed_after() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def tied(
    product: tuple[StructuredGradient, ViewChain],
    look_up: tuple[StructuredGradient, ViewChain],
    samples: int,
) -> tuple[StructuredGradient, ViewChain]:
    """The two uses of a matrix that is also a table as one."""
    (matrix, arrange_matrix), (table, arrange) = product, look_up
    assert isinstance(matrix, OuterGradient) and isinstance(table, RowsGradient)
    turned = not _is_identity(arrange_matrix, table.shape)
    return TiedGradient(matrix.turned() if turned else matrix, table, samples), arrange


def _is_identity(arrange: ViewChain, shape: torch.Size) -> bool:
    """Whether a matrix is used as it is, and not its transpose."""
    seen = arrange(torch.empty(shape, device="meta"))
    return seen.shape == shape and seen.is_contiguous()


class _Waiting:
    """Uses that have come by but cannot be handed on yet: until all of their parameter are there."""

    def __init__(
        self,
        graph: Graph,
        finding: Finding,
        schedule: Schedule,
        consumer: Consumer,
        samples: int,
        allow_overlap: bool,
    ) -> None:
        self._graph = graph
        self._plan = finding.plan
        self._layouts = finding.layouts
        self._schedule = schedule
        self._consumer = consumer
        self._samples = samples
        self._summands = allow_overlap
        self._uses: dict[int, StructuredGradient] = {}
        self._missing = dict(schedule.uses)
        #: parameters of which a use turned out to be beyond its rule, or samples to be mixed there
        self.declined: set[int] = set()
        #: whether a rule has refused, which the plan has written down
        self.refused = False
        self._mixed = finding.mixed

    def arrived(self, number: int, gradient: Tensor) -> None:
        """The gradient at a site's node is there: make the use, hand on what is complete."""
        site = self._plan.sites[number]
        use = self._make_use(site, gradient.detach())
        if use is None:
            site.usable = False
            self.refused = True
            self.declined |= self._plan.parameters_of(site)
            return
        self._uses[number] = use
        parameter = self._schedule.owner.get(number)
        if parameter is not None:
            self._missing[parameter] -= 1
            if self._missing[parameter] == 0:
                self._hand_on(parameter)

    def decline(self, node: int) -> None:
        """Samples are mixed at a node."""
        self._mixed.add(node)
        for site in self._plan.sites:
            if site.node == node:
                self.declined |= self._plan.parameters_of(site)

    def _make_use(self, site: Site, gradient: Tensor) -> StructuredGradient | None:
        if gradient.is_complex():  # a backward multiplies by conjugates, rules do not
            return None
        rule = operation(self._graph.names[site.node]).per_sample[site.edge]
        shape = self._graph.shape(*site.derived)
        saved = DetachedSaved(self._graph.nodes[site.node])
        for layout in self._layouts[site.node]:
            use = rule(OutputGradient(saved, gradient, layout, self._samples, shape))
            if use is not None:
                return use
        return None

    def _hand_on(self, parameter: int) -> None:
        route = self._plan.routes[parameter]
        found: list[tuple[StructuredGradient, ViewChain]] = []
        for group in route.groups:
            uses = [self._uses.pop(i) for i in group if i in self._uses]
            if uses:
                arrange = route.arrangements[group[0]].on(self._graph)
                found.append((join(uses, self._samples), arrange))
        if route.path == "tied" and len(found) == 2 and not self._summands:
            found = [tied(found[0], found[1], self._samples)]
        for use, arrange in found:
            self._consumer.use(parameter, use, arrange)

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
                    self._consumer.gradient(p, n, gradient)
