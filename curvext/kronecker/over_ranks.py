"""Factors of the data of several processes: what each parameter is, agreed upon, and sums over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvext.kronecker.exact import ExactSum
from curvext.kronecker.roles import Roles, SaidOfRoles, differs, merged
from curvext.kronecker.sums import LayerSum
from curvext.processes import Group


@dataclass(frozen=True)
class _Made:
    """Sums that a rank has: their class, and of each tensor shape and dtype."""

    kind: type[LayerSum]
    tensors: list[tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class _Said:
    """A rank's report after its pass."""

    roles: SaidOfRoles
    sums: dict[int, _Made]
    exact: set[tuple[int, ...]]


def agreed_sums(
    group: Group,
    roles: Roles,
    sums: Mapping[int, LayerSum],
    exact: ExactSum,
    device: torch.device,
) -> dict[int, LayerSum] | None:
    """The sums of all ranks by weight, once the roles are the same on all; the exact ones are added up in place.

    None where they are not: ``roles`` then has those that all agree on, and every rank makes its pass anew. They only
    ever turn from factors to exact, so that this ends.
    """
    made = {
        weight: _Made(type(layer), [(t.shape, t.dtype) for t in layer.tensors()])
        for weight, layer in sums.items()
    }
    said: list[_Said] = group.objects(_Said(roles.said(), made, exact.blocks))
    common = merged([s.roles for s in said])
    roles.take(common)
    if any(differs(s.roles, common) for s in said):
        return None
    exact.add_over(group, sorted(set().union(*(s.exact for s in said))))
    known = {weight: found for s in said for weight, found in s.sums.items()}
    parts: dict[int, list[Tensor]] = {}
    for weight in sorted(known):
        if weight in sums:
            parts[weight] = sums[weight].tensors()
        else:  # this rank has no sample that comes there
            forms = known[weight].tensors
            parts[weight] = [torch.zeros(s, dtype=d, device=device) for s, d in forms]
    _sum_by_dtype(group, [t for found in parts.values() for t in found])
    return {weight: known[weight].kind.of(found) for weight, found in parts.items()}


def _sum_by_dtype(group: Group, tensors: Sequence[Tensor]) -> None:
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group.sum_all([t for t in tensors if t.dtype == dtype])
