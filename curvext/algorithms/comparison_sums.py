"""Norms, traces and distances of several matrices, of the same columns multiplied with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvext.results import Estimate


class ComparisonSums:
    """Squares and quadratic forms column by column: the first are of a basis, the rest of probes.

    Differences are taken before they are squared, so equal matrices are 0 apart and not √eps.
    """

    def __init__(self, names: list[str], basis: int) -> None:
        self._names = names
        self._basis = basis
        self.products = 0
        self._parts: dict[Any, list[Tensor]] = {}

    def add(self, columns: Tensor, images: dict[str, Tensor]) -> None:
        """Adds A V for some columns V ``[P, K]`` and each matrix A."""
        for name, image in images.items():
            self._note(("square", name), image.square())
            self._note(("trace", name), image * columns)
        for i, a in enumerate(self._names):
            for b in self._names[:i]:
                self._note(("apart", a, b), (images[a] - images[b]).square())

    def _note(self, key: Any, entries: Tensor) -> None:
        self._parts.setdefault(key, []).append(entries.sum(0))

    def trace(self, name: str) -> Estimate:
        """tr A."""
        return self.estimate(lambda s: s["trace", name])

    def norm(self, name: str) -> Estimate:
        """‖A‖_F."""
        return self.estimate(lambda s: s["square", name].sqrt())

    def distance(self, one: str, other: str) -> Estimate:
        """‖A − B‖ / ‖B‖, 0 where both vanish."""
        pair = (
            ("apart", one, other) if ("apart", one, other) in self._parts else ("apart", other, one)
        )

        def ratio(s: dict[Any, Tensor]) -> Tensor:
            apart = s[pair]
            return torch.where(
                apart == 0, torch.zeros_like(apart), apart / s["square", other]
            ).sqrt()

        return self.estimate(ratio)

    def estimate(self, g: Callable[[dict[Any, Tensor]], Tensor]) -> Estimate:
        """g of the totals, with the jackknife's standard error over the probes."""
        columns = {key: torch.cat(parts) for key, parts in self._parts.items()}
        exact = {key: v[: self._basis].sum() for key, v in columns.items()}
        random = {key: v[self._basis :] for key, v in columns.items()}
        count = len(next(iter(random.values())))
        if count == 0:
            value = g(exact)
            return Estimate(value, torch.zeros_like(value), self.products)
        value = g({key: exact[key] + v.mean() for key, v in random.items()})
        left_out = g({key: exact[key] + (v.sum() - v) / (count - 1) for key, v in random.items()})
        spread = (left_out - left_out.mean()).square().sum() * (count - 1) / count
        return Estimate(value, spread.sqrt(), self.products, count - 1)
