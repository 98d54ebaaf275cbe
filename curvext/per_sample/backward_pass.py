"""One backward pass that hands the per-sample gradients of every parameter to a consumer.

The pass visits the nodes that use parameters but computes no parameter's gradient. At each such node it hands the
input a and the gradient g at the output to the consumer in canonical form, and frees them when it moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

from torch import Tensor

from curvext.graph.autograd_graph import Graph
from curvext.per_sample.collected_uses import CollectedUses, Consumer
from curvext.per_sample.node_gradients import gradients_at, repeatable
from curvext.per_sample.one_by_one import OneByOne
from curvext.per_sample.partners import Wiring, partners
from curvext.per_sample.plan_cache import Finding, PlanCache
from curvext.per_sample.probe import Probe, Sketch, drawn_like
from curvext.per_sample.several_vectors import SeveralVectors
from curvext.samples.layout import Layout


class BackwardPass:
    """One batch and its forward graph, ready for backward passes.

    Args:
        output: f with its graph, ``[N, ...]``.
        parameters: the leaves θ.
        plans: the plan cache of this model's graphs.
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
        """Where samples lie; ``assume`` leaves to the next pass what it can check itself."""
        assert self._graph is not None
        if self._finding is None or (self._finding.assumed and not assume):
            count = len(self._parameters)
            self._finding = self._plans.find(self._graph, self.samples, count, self._ask, assume)
        return self._finding

    def paths(self) -> dict[int, str]:
        """The path of each parameter's per-sample gradients, and how its samples are known to lie apart."""
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
        """How the graph uses the parameters."""
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
        """How many elements of per-sample gradients :meth:`play` will materialise."""
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
        collected = CollectedUses(graph, finding, schedule, consumer, self.samples, allow_overlap)
        look = self._watch(finding, cotangent)

        def arrived(position: int, gradient: Tensor) -> None:
            if look is not None and position in finding.assumed:
                layouts = look(position, gradient)
                if layouts is None:  # no gradient arrives
                    return
                if not layouts:
                    collected.decline(position)
                    return
                finding.layouts[position] = layouts
            for i in schedule.at_node[position]:
                collected.arrived(i, gradient)

        nodes, lowest = schedule.at_node.keys(), schedule.lowest
        # until every rule has accepted its use, the only graph may be needed again
        unsettled = self._only_graph and (not plan.settled or bool(finding.assumed))
        retain = keep or unsettled or schedule.entangled
        with repeatable(graph) if finding.assumed else nullcontext():
            gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, retain)
        collected.finish()
        if collected.refused:
            plan.reroute(graph)
        general = {i for i, route in enumerate(plan.routes) if route.path == "general"}
        numbers = sorted(general | collected.declined)
        if not numbers:
            plan.settled = True
            return
        if not retain and self._only_graph:
            raise RuntimeError(
                f"{sorted(collected.declined)}: the use of these parameters has changed within one structure of the "
                "graph, so that their per-sample gradients have no fast rule any more; call again"
            )
        self._one_by_one.gradients(numbers, cotangent, consumer.gradient)

    def several_vectors(self) -> SeveralVectors | None:
        """Passes of several vectors each, where hooks on tensors do not edit gradients; they keep the graph."""
        graph = self._graph
        if graph is None or self._hooked:
            return None
        finding = self._find()
        schedule = finding.plan.schedule(graph, False)
        return SeveralVectors(graph, self._output, finding, schedule, self.samples)

    def _ask(self, nodes: set[int]) -> dict[int, tuple[Layout, ...] | None]:
        """The layouts of some gradients by backward passes of this batch; None of one of zeros."""
        assert self._graph is not None
        probe = Probe(drawn_like(self._output))
        sketches = self._sketched(nodes, probe.cotangents)
        return {i: probe.layouts(self._graph.shape(i), sketches[i]) for i in nodes}

    def _watch(
        self, finding: Finding, cotangent: Tensor
    ) -> Callable[[int, Tensor], tuple[Layout, ...] | None] | None:
        """Finds the layouts of nodes that are assumed to have one, when the pass of a cotangent reaches them."""
        if not finding.assumed:
            return None
        graph, probe = self._graph, Probe(cotangent)
        assert graph is not None
        scaled = self._sketched(finding.assumed, probe.cotangents[1:])
        return lambda i, gradient: probe.layouts(graph.shape(i), [Sketch(gradient), *scaled[i]])

    def _sketched(
        self, nodes: set[int], cotangents: Sequence[Tensor]
    ) -> Mapping[int, list[Sketch]]:
        """A sketch of the gradient at some nodes for each cotangent; nodes that no cotangent reaches are missing."""
        assert self._graph is not None
        graph, lowest = self._graph, self._graph.bottom(nodes)
        sketches: dict[int, list[Sketch]] = {i: [] for i in nodes}

        def arrived(position: int, gradient: Tensor) -> None:
            sketches[position].append(Sketch(gradient))

        with repeatable(graph):
            for cotangent in cotangents:
                gradients_at(graph, self._output, cotangent, nodes, lowest, arrived, retain=True)
        return sketches
