"""For each parameter: where it is used, and which path its per-sample gradients take.

The paths, from fast to general, all exact:

* fused   – one use, or uses of one kind: squares and norms come straight from (a, g);
* tied    – a matrix that is also a look-up table (tied embedding and head): squares and norms of both
            uses and the cross term of the rows that a sample looked up;
* overlapping – other uses that share elements: what is linear in the gradient adds the uses, for the
            rest each sample's gradient is formed from them;
* formed  – a parametrisation: each sample's gradient is formed from the uses of what was derived
            from the parameter, and pulled back to it;
* general – some use has no rule: one backward pass for each sample.

One file because routes are chosen from sites, and schedules from routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvext.graph.autograd_graph import Graph
from curvext.operations.operation import Operation
from curvext.operations.table import operation
from curvext.operations.view_chain import ViewChain, leads_on
from curvext.samples.layout import Layout

#: positions of nodes → the layouts of their gradients, each of which will do; none where samples are mixed
LayoutsOf = Callable[[set[int]], Mapping[int, tuple[Layout, ...]]]


@dataclass
class Site:
    """One place where a value derived from parameters meets data: input ``edge`` of ``node``."""

    node: int
    edge: int
    derived: tuple[int, int]  # the node that made the value, and which of its outputs
    usable: bool  # there is a rule, and it has not declined


@dataclass
class Route:
    """How one parameter's per-sample gradients are computed."""

    path: str  # "fused", "tied", "overlapping", "formed", "general" or "unused"
    groups: list[list[int]] = field(default_factory=list)  # sites that are one use together
    arrangements: dict[int, ViewChain] = field(
        default_factory=dict
    )  # site → the selections below it


class Plan:
    """Sites and routes of one graph structure, given the nodes at which samples are apart."""

    def __init__(self, graph: Graph, parameters: int, layouts_of: LayoutsOf) -> None:
        self.sites = _find_sites(graph, layouts_of)
        self._below = _parameters_below(graph, self.sites)
        self.routes = [self._route(graph, number) for number in range(parameters)]
        self._schedules: dict[bool, Schedule] = {}
        #: whether a pass has gone through without any parameter on the general path
        self.settled = False
        #: whether no pass of several vectors has failed
        self.takes_vectors = True

    def refuse(self, site: Site) -> None:
        """The rule of a site has declined its use; :meth:`reroute` when the pass is over."""
        site.usable = False

    def reroute(self, graph: Graph) -> None:
        """Chooses the paths anew after a site was refused."""
        self.routes = [self._route(graph, number) for number in range(len(self.routes))]
        self._schedules.clear()

    def schedule(self, graph: Graph, allow_overlap: bool) -> Schedule:
        """What a pass over a graph of this structure collects, computed once."""
        if allow_overlap not in self._schedules:
            self._schedules[allow_overlap] = Schedule(self, graph, allow_overlap)
        return self._schedules[allow_overlap]

    def parameters_of(self, site: Site) -> set[int]:
        """The parameters from which the value used at ``site`` is derived."""
        return self._below.get(site.derived[0], set())

    def _route(self, graph: Graph, parameter: int) -> Route:
        mine = [i for i, site in enumerate(self.sites) if parameter in self.parameters_of(site)]
        if not mine:
            # a rearrangement may lead straight to the output, or the parameter be the output
            return Route("general" if parameter in graph.parameter_at.values() else "unused")
        if not all(self.sites[i].usable for i in mine):
            return Route("general")
        chains = {i: ViewChain.below(graph, self.sites[i].derived) for i in mine}
        plain = {i: chain for i, chain in chains.items() if chain is not None}
        if len(plain) < len(mine):
            return Route("formed")
        leaf = next(
            position for position, number in graph.parameter_at.items() if number == parameter
        )
        groups, disjoint = _groups(plain, graph.shape(leaf))
        if disjoint:
            return Route("fused", groups, plain)
        tied = self._tied(graph, groups, plain, graph.shape(leaf))
        return Route("overlapping", groups, plain) if tied is None else Route("tied", tied, plain)

    def _tied(
        self,
        graph: Graph,
        groups: list[list[int]],
        arrangements: dict[int, ViewChain],
        shape: torch.Size,
    ) -> list[list[int]] | None:
        """The groups of a matrix and of a table, in this order, if the uses are one of each."""
        if len(groups) != 2 or len(shape) != 2:
            return None
        identity = torch.arange(shape.numel(), device="cpu").view(shape)

        def used_as(group: list[int]) -> set[str | None]:
            sites = [self.sites[i] for i in group]
            return {_use_as(operation(graph.names[s.node]), s.edge) for s in sites}

        def is_one_of(group: list[int], *forms: Tensor) -> bool:
            image = arrangements[group[0]].image(shape)
            return any(torch.equal(image, form) for form in forms)

        for matrix, table in (groups, groups[::-1]):
            if (
                used_as(matrix) in ({"left"}, {"right"})
                and used_as(table) == {"rows"}
                and is_one_of(matrix, identity, identity.T)
                and is_one_of(table, identity)
            ):
                return [matrix, table]
        return None


def _use_as(of: Operation, edge: int) -> str | None:
    """Whether an input is the left or the right factor of a product, or a table of rows."""
    return "rows" if of.look_up and edge == 0 else of.factor(edge)


class Schedule:
    """What one backward pass needs to collect.

    Args:
        plan, graph: the plan and a graph of its structure.
        allow_overlap: whether the gradient of a parameter may come as several uses that overlap.
    """

    def __init__(self, plan: Plan, graph: Graph, allow_overlap: bool) -> None:
        by_use = {"fused", "tied", *(["overlapping"] if allow_overlap else [])}
        by_sample = {"formed"} if allow_overlap else {"formed", "overlapping"}
        routes = list(enumerate(plan.routes))
        #: parameters whose uses are handed on
        self.by_use = {p for p, route in routes if route.path in by_use}
        #: parameters whose gradients are formed, sample by sample
        self.by_sample = {p for p, route in routes if route.path in by_sample}
        #: site → the parameter it is a use of
        self.owner = {i: p for p in self.by_use for group in plan.routes[p].groups for i in group}
        #: sites below which there is a parameter whose gradients are formed
        self.shared = {
            i for i, site in enumerate(plan.sites) if plan.parameters_of(site) & self.by_sample
        }
        #: number of uses of each parameter
        self.uses = {p: sum(map(len, plan.routes[p].groups)) for p in self.by_use}
        #: node → the sites at it
        self.at_node: dict[int, list[int]] = {}
        for i, site in enumerate(plan.sites):
            if i in self.owner or i in self.shared:
                self.at_node.setdefault(site.node, []).append(i)
        self.lowest = graph.bottom(set(self.at_node))
        #: whether the derivation of a shared value lies on the way to other sites, so that it is needed twice
        self.entangled = bool(
            _below(graph, {plan.sites[i].derived[0] for i in self.shared}) & set(self.at_node)
        )


def _below(graph: Graph, positions: set[int]) -> set[int]:
    """The nodes at and below some positions."""
    found: set[int] = set()
    stack = list(positions)
    while stack:
        i = stack.pop()
        if i not in found:
            found.add(i)
            stack += [c for c, _ in graph.edges[i] if c is not None]
    return found


def _find_sites(graph: Graph, layouts_of: LayoutsOf) -> list[Site]:
    """Follows every parameter upwards to the first nodes at which samples are apart."""
    sites: list[Site] = []
    derived = list(graph.parameter_at)
    visited = set(derived)
    known: dict[int, tuple[Layout, ...]] = {}
    while derived:
        meetings: list[tuple[int, int, int]] = []
        rearranged = list(derived)
        while rearranged:
            child = rearranged.pop()
            for parent, edge in graph.consumers[child]:
                if not leads_on(graph, parent):
                    meetings.append((parent, edge, child))
                elif parent not in visited:
                    visited.add(parent)
                    rearranged.append(parent)
        known.update(layouts_of({parent for parent, _, _ in meetings} - set(known)))
        derived = []
        for parent, edge, child in meetings:
            if known[parent]:
                usable = edge in operation(graph.names[parent]).per_sample
                which = graph.edges[parent][edge][1]
                sites.append(Site(parent, edge, (child, which), usable))
            elif parent not in visited:
                visited.add(parent)
                derived.append(parent)
    return sites


def _parameters_below(graph: Graph, sites: list[Site]) -> dict[int, set[int]]:
    """For each derived node the numbers of the parameters it depends on."""
    below: dict[int, set[int]] = {}
    for site in sites:
        stack = [site.derived[0]]
        while stack:
            node = stack[-1]
            if node in below:
                stack.pop()
                continue
            children = [c for c, _ in graph.edges[node] if c is not None]
            waiting = [c for c in children if c not in below]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            own = {graph.parameter_at[node]} if node in graph.parameter_at else set()
            below[node] = own.union(*(below[c] for c in children))
    return below


def _groups(arrangements: dict[int, ViewChain], shape: torch.Size) -> tuple[list[list[int]], bool]:
    """Groups the sites that use the same elements in the same arrangement; also whether no groups overlap."""
    if len(arrangements) == 1:
        return [list(arrangements)], True
    groups: list[tuple[Tensor, list[int]]] = []
    taken = torch.zeros(shape.numel(), dtype=torch.bool, device="cpu")
    disjoint = True
    for i, arrangement in arrangements.items():
        image = arrangement.image(shape)
        same = next((members for other, members in groups if torch.equal(other, image)), None)
        if same is not None:
            same.append(i)
            continue
        disjoint = disjoint and not bool(taken[image.flatten()].any())
        taken[image.flatten()] = True
        groups.append((image, [i]))
    return [members for _, members in groups], disjoint
