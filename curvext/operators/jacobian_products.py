"""J v and Jᵀ u of the outputs of all samples by the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curvext.arguments import check_dense
from curvext.dtypes import dtype_of_sums
from curvext.finite import is_finite
from curvext.operators.curvature import narrowed
from curvext.operators.ggn import GGNOperator
from curvext.problem import Problem

#: the subject of the error about a changed order of the data
_OUTPUTS = "the outputs of samples"


def jvp(problem: Problem, v: Tensor | Mapping[str, Tensor]) -> Tensor:
    """J v; see :meth:`curvext.EmpiricalRisk.jvp`."""
    _alone("jvp", problem)
    operator = GGNOperator.of(problem)
    vector = operator.flatten(v) if isinstance(v, Mapping) else v
    operator._check(vector, "jvp: v", 1, 2)
    block = vector.detach().unsqueeze(1) if vector.ndim == 1 else vector.detach()
    if block.shape[1] == 0:
        raise ValueError("jvp: v: expected at least one column, got none")
    columns, factors = narrowed(list(block.unbind(1)), problem.space.dtype)
    blocks = [problem.space.blocks(c) for c in columns]
    parts: list[list[Tensor]] = [[] for _ in columns]

    with problem.data_check.in_order(_OUTPUTS), problem.linearisations() as batches:
        for at in batches:
            for part, v_blocks in zip(parts, blocks, strict=True):
                part.append(at.jvp(v_blocks).detach().to(problem.dtype))
    products = [_concatenated(part) for part in parts]
    if factors is not None:
        products = [p * f.to(p.dtype) for p, f in zip(products, factors, strict=True)]
    return products[0] if vector.ndim == 1 else torch.stack(products, -1)


def _alone(method: str, problem: Problem) -> None:
    if not problem.group.alone:
        raise ValueError(
            f"{method}: process_group: the outputs of other ranks are not gathered; make a risk of this rank's data "
            "with process_group=None, and add up vjp over the ranks"
        )


def _concatenated(batches: list[Tensor]) -> Tensor:
    shapes = list(dict.fromkeys(tuple(b.shape[1:]) for b in batches))
    if len(shapes) > 1:
        raise ValueError(
            f"jvp: data: the outputs of batches have shapes {list(shapes[0])} and {list(shapes[1])} for each sample, "
            "which cannot be put together; pad the batches to one length, or make a risk of each"
        )
    return torch.cat(batches)


def vjp(problem: Problem, u: Tensor) -> Tensor:
    """Jᵀ u; see :meth:`curvext.EmpiricalRisk.vjp`."""
    _alone("vjp", problem)
    space = problem.space
    check_dense("vjp: u", u)
    if u.dtype != problem.dtype:
        raise TypeError(f"vjp: u: expected dtype {problem.dtype}, got {u.dtype}")
    if u.device != space.device:
        raise ValueError(f"vjp: u: expected device {space.device}, got {u.device}")
    if (u.device.type == "cpu" or problem.check_finite) and not is_finite(u):
        raise ValueError("vjp: u: contains nan or inf")
    problem.refresh()
    samples = problem.totals.samples
    if u.ndim == 0 or len(u) != samples:
        raise ValueError(
            f"vjp: u: expected a row for each of the {samples} samples, got {list(u.shape)}"
        )
    (rows,), factors = narrowed([u.detach()], space.dtype)
    with torch.inference_mode(False):  # later in-place additions run outside inference mode
        total = torch.zeros(space.size, dtype=dtype_of_sums(space.dtype), device=space.device)

    with problem.data_check.in_order(_OUTPUTS), problem.linearisations() as batches:
        for at in batches:
            residual = at.point.residual
            mine = rows[at.first : at.first + len(residual)]
            if mine.shape != residual.shape:
                raise ValueError(
                    f"vjp: u: expected outputs of shape {list(residual.shape[1:])} for each sample, got "
                    f"{list(u.shape[1:])}"
                )
            gradients = at.vjp(mine.to(residual.dtype), last=True)
            total.add_(torch.cat([p.reshape(-1) for p in gradients]))
    if factors is not None:
        total.mul_(factors[0])
    return total.to(problem.dtype)
