"""A risk in words: which parameters take which path, what is kept, what is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvext.cache import Cache
from curvext.dtypes import dtype_of_sums
from curvext.losses import OutputLoss
from curvext.problem.ranks import Ranks
from curvext.processes import HeldParameters
from curvext.processes.words import SIZE
from curvext.space import ParameterSpace

#: the cost of each way to prove samples apart
_COSTS = {
    "by indices": "read from the indices of each batch, without a pass",
    "by backward passes": "asked on each batch by backward passes without weight gradients: about half a gradient",
    "general": "one backward pass for each sample",
}


@dataclass(frozen=True)
class Explanation:
    """What there is to say of a risk.

    Args:
        space: the parameters.
        loss: ℓ.
        cache: what is kept.
        products: how products with H, R and G are computed.
        hooked: modules and parameters whose backward hooks are set aside.
        paths: by parameter the paths that its per-sample gradients take.
        ranks: the processes.
        held: where the parameters are.
    """

    space: ParameterSpace
    loss: OutputLoss
    cache: Cache
    products: str
    hooked: Sequence[str]
    paths: Mapping[str, Sequence[str]]
    ranks: Ranks
    held: HeldParameters

    def __str__(self) -> str:
        space = self.space
        lines = [
            f"{len(space.names)} parameters, P = {space.size}, {space.dtype}, {space.device}",
            f"loss: {type(self.loss).__name__} ({self.loss.reduction})",
            f"products: {self.products}",
            f"kept: {len(self.cache)} linearisations, records and factors, {self.cache.nbytes / 2**20:.1f} MiB",
        ]
        if self.hooked:
            lines.append(f"set aside in all passes: backward hooks of {', '.join(self.hooked)}")
        lines += self._processes()
        lines.append(
            "empirical-Fisher diagonal and per-sample norms, by parameter (how samples are proven apart):"
        )
        width = max(map(len, self.paths))
        lines += [f"  {name:<{width}}  {' or '.join(path)}" for name, path in self.paths.items()]
        every = " ".join(path for several in self.paths.values() for path in several)
        lines += [f"{word}: {cost}" for word, cost in _COSTS.items() if word in every]
        return "\n".join(lines)

    def _processes(self) -> list[str]:
        """Lines on the group: who has how much, and what a product sends."""
        group = self.ranks.group
        if not group.given:
            return []
        held = self.held.described()
        if group.alone:
            return [f"processes: {group}; nothing is sent; {held}"]
        size = self.space.size * dtype_of_sums(self.space.dtype).itemsize / 2**20
        gathered = self.held.nbytes()
        before = [
            f"sent before each call: one exchange of words, and the parameters, {gathered / 2**20:.1f} MiB gathered on "
            "each rank"
        ]
        return [
            f"processes: {group}, {list(self.ranks.shares)} samples; {held}",
            *(before if gathered else []),
            f"sent for each product: one exchange of words, {SIZE} bytes from each rank, and one sum of "
            f"{size:.1f} MiB for each column",
        ]
