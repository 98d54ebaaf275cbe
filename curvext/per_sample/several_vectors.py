"""Several vectors in one backward pass, where the gradients of all fit into a little memory.

PyTorch's engine takes the vectors as a batch (``is_grads_batched``), each rule sees one tensor that stands for all of
their gradients, and the kernels take them along an axis of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from curvext.gradients.structured import OneTensorGradient, StructuredGradient
from curvext.graph.autograd_graph import Graph, is_python_function
from curvext.operations.node import DetachedSaved
from curvext.operations.operation import OutputGradient
from curvext.operations.table import operation
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.parameter_uses import Schedule, Site
from curvext.per_sample.plan_cache import Finding
from curvext.torch_internals.vectors import (
    one_for_all,
    several_of,
    standing_for,
    stands_for_several,
    takes_several,
    without_slow_rules,
)

#: bytes of the gradients of all vectors at all nodes, which are there at the same time
_AT_ONCE = 32 << 20


@dataclass(frozen=True)
class Use:
    """One use of a parameter, for several vectors.

    Args:
        parameter: its number.
        use: the use; it knows one vector.
        vectors: what stands in the place of ``use.pulled_back``, ``[V, ...]``.
        arrange: from the parameter to the use.
    """

    parameter: int
    use: OneTensorGradient
    vectors: Tensor
    arrange: ViewChain


class SeveralVectors:
    """One batch, ready for backward passes of several vectors each.

    Args:
        graph: the graph.
        output: of the batch.
        finding: where samples lie; no layout may be assumed.
        schedule: which sites are used, and by which parameters.
        samples: N.
    """

    def __init__(
        self, graph: Graph, output: Tensor, finding: Finding, schedule: Schedule, samples: int
    ) -> None:
        self._graph = graph
        self._output = output
        self._finding = finding
        self._schedule = schedule
        self._samples = samples

    @property
    def most(self) -> int:
        """How many vectors a pass takes; 1 where only passes of one vector are possible."""
        graph, plan, nodes = self._graph, self._finding.plan, self._schedule.at_node
        if not (takes_several() and plan.takes_vectors and nodes):
            return 1
        paths = {route.path for route in plan.routes}
        joined = any(len(group) > 1 for route in plan.routes for group in route.groups)
        # a function written in Python may do what is not linear on a batch
        if joined or not paths <= {"fused", "unused"} or any(map(is_python_function, graph.nodes)):
            return 1
        size = sum(graph.shape(node).numel() for node in nodes) * self._output.element_size()
        return max(1, _AT_ONCE // max(1, size))

    def run(self, cotangents: Tensor) -> list[Use] | None:
        """The uses of every parameter for all cotangents ``[V, N, ...]``.

        None where an operation or a rule takes no batch of vectors, which its plan remembers.
        """
        try:
            with without_slow_rules():  # passes of one vector do no worse
                found = list(self._uses(cotangents))
        except (RuntimeError, UserWarning, _OneByOneError):
            # whatever it was, also a lack of memory: passes of one vector answer it, or raise it again
            self._finding.plan.takes_vectors = False
            return None
        return found

    def _uses(self, cotangents: Tensor) -> Iterator[Use]:
        graph, plan, schedule = self._graph, self._finding.plan, self._schedule
        nodes = list(schedule.at_node)
        found = torch.autograd.grad(
            self._output,
            [GradientEdge(graph.nodes[node], 0) for node in nodes],
            cotangents,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        with one_for_all(len(cotangents)) as level:
            made = [
                (i, self._use(plan.sites[i], standing_for(gradients, level)))
                for node, gradients in zip(nodes, found, strict=True)
                if gradients is not None
                for i in schedule.at_node[node]
            ]
        for i, use in made:
            if not isinstance(use, OneTensorGradient):
                raise _OneByOneError
            parameter, vectors = schedule.owner[i], use.pulled_back
            alike = [t for t in use.kept() if stands_for_several(t)]
            if vectors is None or len(alike) != 1 or alike[0] is not vectors:
                raise _OneByOneError
            arrange = plan.routes[parameter].arrangements[i].on(graph)
            yield Use(parameter, use, several_of(vectors), arrange)

    def _use(self, site: Site, gradient: Tensor) -> StructuredGradient:
        graph = self._graph
        if gradient.is_complex():  # a backward multiplies by conjugates, rules do not
            raise _OneByOneError
        rule = operation(graph.names[site.node]).per_sample[site.edge]
        saved, shape = DetachedSaved(graph.nodes[site.node]), graph.shape(*site.derived)
        for layout in self._finding.layouts[site.node]:
            use = rule(OutputGradient(saved, gradient, layout, self._samples, shape))
            if use is not None:
                return use
        raise _OneByOneError


class _OneByOneError(Exception):
    """Only passes of one vector are possible."""
