"""The alternatives that a model needs, found in the graph of a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from curvext.graph import autograd_graph
from curvext.operations.operation import GraphUse
from curvext.operations.table import operation


class Alternatives:
    """The operations met in a model whose derivatives are missing, wrong or slow for some use of the graph.

    A forward pass in the ordinary way finds them, and is run again with their alternatives; later passes take those at
    once. Where no such operation occurs, nothing is slower.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._doubled = False

    @classmethod
    def of(cls, model: nn.Module) -> Alternatives:
        """The alternatives of a model, shared by all its evaluations because finding them takes a forward pass."""
        return _OF_MODELS.setdefault(model, cls())

    def invalidate(self) -> None:
        """Forgets the operations found, because the model has other modules."""
        self._names.clear()
        self._doubled = False

    def find(self, output: Tensor, use: GraphUse) -> bool:
        """Whether the graph of an output has operations whose needed alternative was not used.

        Raises:
            RuntimeError: it has one without second derivatives, and this use needs them.
        """
        if output.grad_fn is None:
            return False
        names = autograd_graph.node_names(output.grad_fn)
        if use not in ("backward", "plain"):
            refused = sorted(n for n in names if operation(n).refusal is not None)
            if refused:
                raise RuntimeError(operation(refused[0]).refusal)
        doubled = self._doubled
        if use == "linearised" and any("doubled" in operation(n).alternatives for n in names):
            functions = autograd_graph.names_in_python(output.grad_fn)
            # no tangents: J v is a double backward pass
            self._doubled |= any(operation(n).tangent is None for n in functions)
        found = {n for n in names if self._use(use) in operation(n).alternatives}
        if found <= self._names and self._doubled == doubled:
            return False
        self._names |= found
        return True

    @contextmanager
    def taken(self, use: GraphUse) -> Iterator[None]:
        """The alternatives found so far for a use of the graph, for one forward pass."""
        use = self._use(use)
        tables = [operation(name).alternatives for name in sorted(self._names)]
        with ExitStack() as stack:
            for alternative in dict.fromkeys(table[use] for table in tables if use in table):
                stack.enter_context(alternative())
            yield

    def _use(self, use: GraphUse) -> GraphUse:
        return "doubled" if use == "linearised" and self._doubled else use


_OF_MODELS: weakref.WeakKeyDictionary[nn.Module, Alternatives] = weakref.WeakKeyDictionary()
