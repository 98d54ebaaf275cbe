"""The uses of parameters in one batch, joined by parameter as the backward pass reaches them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext.gradients.joined import TiedGradient, join
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient
from curvext.gradients.structured import StructuredGradient
from curvext.graph.autograd_graph import Graph, leaf_variable
from curvext.operations.node import DetachedSaved
from curvext.operations.operation import OutputGradient
from curvext.operations.table import operation
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.parameter_uses import Schedule, Site
from curvext.per_sample.plan_cache import Finding


class Consumer(Protocol):
    """Takes per-sample gradients during a backward pass: adds them up, or records them."""

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        """A use of some of the parameter's elements: ``arrange`` shows a tensor of its shape as they lie there."""

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        """The whole gradient of one sample by one parameter."""


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


class CollectedUses:
    """Collects uses until every use of their parameter has arrived, and then hands them to the consumer.

    Args:
        graph: the graph of this batch.
        finding: where its samples lie, and the plan for its structure.
        schedule: which sites are used, and by which parameters.
        consumer: takes the uses.
        samples: N.
        allow_overlap: whether a parameter may be handed over as several uses that overlap.
    """

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
        self._allow_overlap = allow_overlap
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
            self._plan.refuse(site)
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
        if route.path == "tied" and len(found) == 2 and not self._allow_overlap:
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
