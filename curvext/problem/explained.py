"""A risk in words: which parameters take which path, what is kept, what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curvext.dtypes import dtype_of_sums
from curvext.processes import Saying
from curvext.processes.words import SIZE

if TYPE_CHECKING:
    from curvext.problem.problem import Problem

#: the cost of each way to prove samples apart
_COSTS = {
    "by indices": "read from the indices of each batch, without a pass",
    "by backward passes": "asked on each batch by backward passes without weight gradients: about half a gradient",
    "general": "one backward pass for each sample",
}


def text(problem: Problem) -> str:
    """The text of :meth:`curvext.EmpiricalRisk.explain`."""
    space, cache = problem.space, problem._cache
    lines = [
        f"{len(space.names)} parameters, P = {space.size}, {space.dtype}, {space.device}",
        f"loss: {type(problem.loss).__name__} ({problem.loss.reduction})",
        f"products: {problem.products_by()}",
        f"kept: {len(cache)} linearisations, records and factors, {cache.nbytes / 2**20:.1f} MiB",
    ]
    hooked = problem._evaluation.names_with_backward_hooks()
    if hooked:
        lines.append(f"set aside in all passes: backward hooks of {', '.join(hooked)}")
    found = problem.paths()
    lines += _processes(problem)
    lines.append(
        "empirical-Fisher diagonal and per-sample norms, by parameter (how samples are proven apart):"
    )
    width = max(map(len, found))
    lines += [f"  {name:<{width}}  {' or '.join(path)}" for name, path in found.items()]
    every = " ".join(path for several in found.values() for path in several)
    lines += [f"{word}: {cost}" for word, cost in _COSTS.items() if word in every]
    return "\n".join(lines)


def paths(problem: Problem) -> dict[str, list[str]]:
    """By parameter the paths that its per-sample gradients take, over all batches."""
    found: dict[int, set[str]] = {}
    with problem.call(Saying("paths")) as rounds:
        for _ in rounds:
            with problem.backward_passes() as batches:
                for backward, _ in batches:
                    for number, path in backward.paths().items():
                        found.setdefault(number, set()).add(path)
    nowhere = {"no sample here"}  # where other ranks have them all
    return {name: sorted(found.get(i, nowhere)) for i, name in enumerate(problem.space.names)}


def _processes(problem: Problem) -> list[str]:
    """Lines on the group: each rank's samples, and what a product sends."""
    group = problem.group
    if not group.given:
        return []
    held = "parameters are whole on each rank"
    if group.alone:
        return [f"processes: {group}; nothing is sent; {held}"]
    size = problem.space.size * dtype_of_sums(problem.space.dtype).itemsize / 2**20
    return [
        f"processes: {group}, {list(problem.ranks.shares)} samples; {held}",
        f"sent for each product: one exchange of words, {SIZE} bytes from each rank, and one sum of "
        f"{size:.1f} MiB for each column",
    ]
