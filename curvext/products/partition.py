"""A traced computation cut into stages, by when its inputs become known.

Of H v the parameters and the batch are known first, the residual once the loss has seen the output, v with each
product. What depends on the first alone is computed once, and what later stages read of it is handed on: so a
computation is linearised once and multiplied many times, however it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

#: a value of the computation by the name of its node
Values = Mapping[str, Tensor]

# fmt: off
#: rearrangements, which cost nothing
_VIEWS = {
    "_unsafe_view", "alias", "detach", "expand", "permute", "reshape", "squeeze", "t", "transpose", "unsqueeze", "view",
}
#: element by element, and less than reading the result from memory would cost
_RECOMPUTABLE = {
    "abs", "add", "bitwise_and", "bitwise_not", "bitwise_or", "div", "eq", "ge", "gt", "le", "logical_and",
    "logical_not", "logical_or", "lt", "maximum", "minimum", "mul", "ne", "neg", "relu", "rsub", "sgn", "sign",
    "square", "sub", "threshold_backward", "where",
}
# fmt: on


@dataclass(frozen=True)
class _Stage:
    """One stage of the computation.

    Args:
        arriving: the names of the inputs that arrive with it.
        reads: the names of all values that its code takes, in the order of its arguments.
        results: how many of the returned values are results.
        saves: the names of the others, with their strides in the trace.
        later: the names of all values that later stages read.
        code: the callable.
    """

    arriving: list[str]
    reads: list[str]
    results: int
    saves: dict[str, tuple[int, ...]]
    later: set[str]
    code: Callable[..., Sequence[Tensor]]


class Partition:
    """Stages of a traced function.

    Args:
        traced: the function, without operations that write to anything.
        arrivals: for each of its inputs the number of the stage with which it comes.
        ready: for each of its results the stage that gives it; none may depend on inputs of a later one.
        compile: what turns the code of a stage into a callable.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        arrivals: Sequence[int],
        ready: Sequence[int],
        compile: Callable[[fx.GraphModule], Callable[..., Sequence[Tensor]]],
    ) -> None:
        nodes = list(traced.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        results = nodes[-1].args[0]
        stage_of = _stages(nodes, dict(zip(inputs, arrivals, strict=True)))
        held = _held(nodes, stage_of, dict(zip(results, ready, strict=True)))
        self._stages: list[_Stage] = []
        wanted: set[fx.Node] = set()  # by the stages after this one
        for number in reversed(range(max(arrivals) + 1)):
            own = [r for r, at in zip(results, ready, strict=True) if at == number]
            saved = [n for n in nodes if n in wanted & held and stage_of[n] == number]
            later = {n.name for n in wanted}
            here = {n for n in nodes if stage_of[n] == number and n.op != "placeholder"}
            reads, code = _code(traced, nodes, [*own, *saved], here, held)
            wanted = (wanted - set(saved)) | set(reads)
            arriving = [n.name for n, at in zip(inputs, arrivals, strict=True) if at == number]
            self._stages.append(
                _Stage(
                    arriving,
                    [n.name for n in reads],
                    len(own),
                    {n.name: n.meta["tensor_meta"].stride for n in saved},
                    later,
                    compile(code),
                )
            )
        self._stages.reverse()

    def awaits(self, number: int) -> bool:
        """Whether a stage computes anything from the inputs that arrive with it."""
        stage = self._stages[number]
        return bool(set(stage.arriving) & (set(stage.reads) | stage.later))

    def run(
        self, number: int, values: Values, inputs: Sequence[Tensor]
    ) -> tuple[list[Tensor], Values]:
        """The results of a stage, and the values that later stages read.

        Args:
            number: of the stage.
            values: what the stages before it handed on.
            inputs: those that arrive with it.
        """
        stage = self._stages[number]
        known = {**values, **dict(zip(stage.arriving, inputs, strict=True))}
        with torch.no_grad():
            given = list(stage.code(*(known[name] for name in stage.reads)))
        results = given[: stage.results]
        for (name, strides), value in zip(stage.saves.items(), given[stage.results :], strict=True):
            known[name] = _laid_out(value, strides)
        return results, {name: value for name, value in known.items() if name in stage.later}


def _laid_out(value: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The value with the strides of the trace, which views need; a compiler chooses its own."""
    if value.stride() == strides:
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(
        value
    )


def _stages(nodes: Sequence[fx.Node], arrivals: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """The first stage that could compute each node; −1 where it needs no input at all."""
    found: dict[fx.Node, int] = {}
    for node in nodes:
        below = [found[n] for n in node.all_input_nodes]
        found[node] = arrivals[node] if node in arrivals else max(below, default=-1)
    return found


def _held(
    nodes: Sequence[fx.Node], stage_of: Mapping[fx.Node, int], ready: Mapping[fx.Node, int]
) -> set[fx.Node]:
    """The values handed to later stages; whatever else they read is cheap to recompute."""
    last_read: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        readers = [last_read[u] if _is(u, _VIEWS) else stage_of[u] for u in node.users]
        last_read[node] = max([*readers, ready.get(node, -1)], default=-1)
    held = {
        n
        for n in nodes
        if n.op == "call_function" and not _is(n, _VIEWS) and last_read[n] > stage_of[n] >= 0
    }
    for node in reversed(nodes):
        if node in held and _is(node, _RECOMPUTABLE) and _follows(node, held - {node}, stage_of):
            held.remove(node)
    return held


def _follows(node: fx.Node, held: set[fx.Node], stage_of: Mapping[fx.Node, int]) -> bool:
    """Whether free and light operations alone compute a value from inputs and ``held``."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in seen or node in held or node.op == "placeholder" or stage_of[node] < 0:
            continue
        if not _is(node, _VIEWS | _RECOMPUTABLE):
            return False
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return True


def _code(
    traced: fx.GraphModule,
    nodes: Sequence[fx.Node],
    wanted: Sequence[fx.Node],
    here: set[fx.Node],
    held: set[fx.Node],
) -> tuple[list[fx.Node], fx.GraphModule]:
    """The inputs and the code that compute ``wanted`` in a stage whose own nodes are ``here``."""
    inside: set[fx.Node] = set()
    read: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in inside or node in read:
            continue
        if node in here or (node not in held and node.op != "placeholder"):
            inside.add(node)
            stack.extend(node.all_input_nodes)
        else:
            read.add(node)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    reads = [n for n in nodes if n in read]
    for node in reads:
        copies[node] = graph.placeholder(node.name)
    for node in nodes:
        if node in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in wanted))
    return reads, fx.GraphModule(traced, graph)


def _is(node: fx.Node, kind: set[str]) -> bool:
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and target._schema.name.removeprefix("aten::") in kind
    )
