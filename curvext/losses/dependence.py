"""Whether a loss depends on the parameters past the output, where no derivative in output space would see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

_WAYS_OUT = (
    "The gradient and all curvature go through the output alone and would lack that. For λ/2 ‖θ‖² leave it out of the "
    "loss and add its curvature: H + λ * curvext.Identity(P); let the model, or forward=, return anything else (the "
    "residual of a differential equation, say) as part of its output; use .detach() where it is meant as a constant, "
    "or leave these parameters out with params="
)


def names_below(value: Tensor, parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of those parameters that the graph of ``value`` leads to."""
    if not value.requires_grad:
        return []
    names = {id(p): name for name, p in parameters.items()}
    found: set[str] = set()
    root = get_gradient_edge(value).node
    seen: set[Node] = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        variable = getattr(cast(Any, node), "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return [name for name in parameters if name in found]


def check_independent(value: Tensor, parameters: Mapping[str, Tensor], what: str) -> None:
    """Raises a ValueError that names the parameters to which the graph of ``value`` leads."""
    names = names_below(value, parameters)
    if names:
        some = ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")
        raise ValueError(
            f"{what} the parameters {some} itself, past the model's output. {_WAYS_OUT}"
        )
