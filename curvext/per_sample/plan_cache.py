"""A cache for the graphs of a model: proofs of where samples lie, and the plans that follow from them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from curvext.graph.autograd_graph import Graph
from curvext.per_sample.parameter_uses import Plan
from curvext.per_sample.proof import Proof, prove
from curvext.samples.layout import Layout, layouts_of, one_sample

#: proofs kept for one structure, for batches of other sizes or indices
_KEPT = 4
#: structures kept for one model: a data-dependent graph may have another one each time
_STRUCTURES = 256

#: asks a backward pass of this batch: positions → their layouts, None where it is inconclusive
Ask = Callable[[set[int]], Mapping[int, tuple[Layout, ...] | None]]


@dataclass
class Finding:
    """Where samples lie in the graph of one batch.

    Args:
        plan: the plan that follows.
        layouts: of the gradient at each node that uses a parameter.
        asked: nodes whose layout only the backward pass of this batch shows, not structure or indices.
        by_index: nodes whose layouts follow from indices of this batch.
        assumed: nodes among ``asked`` that have not been asked yet, but had some layout in an earlier batch.
        mixed: where to record nodes at which samples turn out to be mixed.
    """

    plan: Plan
    layouts: dict[int, tuple[Layout, ...]]
    asked: set[int]
    by_index: set[int]
    assumed: set[int]
    mixed: set[int]


@dataclass
class _Known:
    """A proof, and what backward passes showed at the nodes that it does not cover.

    Args:
        proof: of some graph.
        open: nodes to be asked on each batch.
        mixed: nodes at which samples were mixed in some batch; they are not asked again.
        plans: by the asked nodes that had an answer.
    """

    proof: Proof
    samples: int
    layouts: dict[int, tuple[Layout, ...]] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    mixed: set[int] = field(default_factory=set)
    plans: dict[frozenset[int], Plan] = field(default_factory=dict)

    #: the nodes that had a layout in the previous batch
    last: frozenset[int] | None = None

    def assume(self, graph: Graph) -> Finding | None:
        """The layouts if the open nodes have some layout again, as they did in the previous batch."""
        if not self.last or self.last & self.mixed:
            return None
        plan = self.plans[self.last]
        proven = {
            s.node: self._proven(graph, s.node) for s in plan.sites if s.node not in self.last
        }
        nodes = {site.node for site in plan.sites} & self.last
        return Finding(plan, proven, nodes, self.proof.by_index, set(nodes), self.mixed)

    def find(self, graph: Graph, parameters: int, ask: Ask) -> Finding:
        """The layouts by proof and by a backward pass of this batch."""
        told: dict[int, tuple[Layout, ...]] = {}
        self._ask(set(self.open), ask, told)
        plan = self.plans.get(frozenset(told))
        if plan is None:

            def of(nodes: set[int]) -> dict[int, tuple[Layout, ...]]:
                unknown = {i for i in nodes - self.mixed - self.open if not self._proven(graph, i)}
                self._ask(unknown, ask, told)
                return {i: told.get(i) or self._proven(graph, i) for i in nodes}

            plan = Plan(graph, parameters, of)
            self.plans[frozenset(told)] = plan
        layouts = {
            site.node: told.get(site.node) or self._proven(graph, site.node) for site in plan.sites
        }
        self.last = frozenset(told)
        return Finding(plan, layouts, set(told), self.proof.by_index, set(), self.mixed)

    def _proven(self, graph: Graph, node: int) -> tuple[Layout, ...]:
        if node not in self.layouts:
            owners, shape = self.proof.owners.get(node), graph.shape(node)
            if self.samples == 1:
                self.layouts[node] = one_sample(shape)
            else:
                self.layouts[node] = (
                    () if owners is None else layouts_of(owners, shape, self.samples)
                )
        return self.layouts[node]

    def _ask(self, nodes: set[int], ask: Ask, told: dict[int, tuple[Layout, ...]]) -> None:
        """Asks for some nodes; one that was mixed once counts as mixed from then on, which is exact and slow."""
        if not nodes:
            return
        for node, layouts in ask(nodes).items():
            if layouts == ():
                self.open.discard(node)
                self.mixed.add(node)
            else:
                self.open.add(node)
                if layouts:
                    told[node] = layouts


class PlanCache:
    """Proofs and plans by graph structure; consequences of the structure are proven once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[_Known]] = {}

    def find(
        self, graph: Graph, samples: int, parameters: int, ask: Ask, assume: bool = False
    ) -> Finding:
        """Where the samples of a batch lie in its graph.

        Args:
            graph: of the batch's output.
            samples: N.
            parameters: how many there are.
            ask: asks the backward pass, for what the structure leaves open.
            assume: whether open nodes may be assumed to have a layout as in the previous batch; the caller's pass
                then checks them.
        """
        # one sample cannot mix with others, so it teaches nothing about larger batches
        key = (samples == 1, graph.signature)
        known = self._known[key] = self._known.pop(key, [])  # the latest comes last
        if len(self._known) > _STRUCTURES:
            del self._known[next(iter(self._known))]
        for candidate in known:
            if candidate.samples == samples and candidate.proof.holds(graph):
                found = candidate
                break
        else:
            found = _Known(prove(graph, samples), samples)
            known.insert(0, found)
            del known[_KEPT:]
        assumed = found.assume(graph) if assume else None
        return found.find(graph, parameters, ask) if assumed is None else assumed


_BOOKS: weakref.WeakKeyDictionary[nn.Module, PlanCache] = weakref.WeakKeyDictionary()


def plan_cache_of(model: nn.Module) -> PlanCache:
    """The plans of a model, kept as long as the model lives."""
    return _BOOKS.setdefault(model, PlanCache())
