"""Influence scores: gradients of some data, preconditioned, against those of other data, on one process or several."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from curvext.operators.empirical_fisher import EmpiricalFisherOperator
from curvext.operators.linear import LinearOperator
from curvext.per_sample.recorded import Records
from curvext.problem import Problem
from curvext.processes import Saying
from curvext.products.linearisation import Linearisation
from curvext.progress import Progress
from curvext.space import ParameterSpace

#: elements of queries' gradients that are in memory at a time
_CHUNK = 32 << 20


def influence_scores(
    inverse: LinearOperator, own: Problem | None, query: Any, train: Any, progress: bool
) -> Tensor:
    """⟨g_q, A g_n⟩ for A = ``inverse``, ``[Q, N]``; see :meth:`BlockOperator.scores`."""
    assert inverse.space is not None
    data = _problem("train", train, own, inverse.space)
    asked = _problem("query", query, own if own is not None else data, inverse.space)
    if query is None:
        raise TypeError("scores: query: expected data or a risk, got None")
    if not all(p.group.same_as(data.group) for p in (asked, own or data)):
        raise ValueError(
            "scores: the query, the training data and the operator are of different process groups, or one has "
            "process_group= and one has not"
        )
    gradients = EmpiricalFisherOperator.of(data)
    step = max(1, _CHUNK // inverse.size)
    parts: list[Tensor] = []
    start, count = 0, step
    with Progress(progress, None, "scores", unit="query") as bar:
        while count == step:
            rows = _gradients(asked, start, start + step).mul_(asked.sample_scale())
            count = len(rows)
            if count:
                columns = inverse.matmat(rows.T.to(inverse.dtype))
                parts.append(gradients.products(columns).T)
            start += count
            bar.to(start)
    return torch.cat(parts)


def _gradients(problem: Problem, start: int, stop: int) -> Tensor:
    """The unnormalised gradients of the samples from ``start`` to before ``stop``, ``[n, P]``; fewer at the end.

    Samples are those of all ranks, each of which sends its own of these.
    """
    with problem.call(Saying("scores: query", by_index=True)) as rounds:
        for _ in rounds:
            mine = _own_gradients(problem, start, stop)
    ends = list(accumulate(problem.ranks.shares))
    counts = [
        max(0, min(stop, end) - max(start, end - share))
        for share, end in zip(problem.ranks.shares, ends, strict=True)
    ]
    return problem.group.rows(mine, counts)


def _own_gradients(problem: Problem, start: int, stop: int) -> Tensor:
    """Those of this process's data."""
    parts: list[Tensor] = []
    first = problem.ranks.start
    with (
        problem.data_check.in_order("influence scores", always=True),
        problem.records() as batches,
    ):
        for batch in batches:
            samples = batch.samples if isinstance(batch, Records) else len(batch.point.residual)
            here = range(max(start - first, 0), min(stop - first, samples))
            first += samples
            if isinstance(batch, Records):
                parts += [batch.gradients(here.start, here.stop)] if here else []
            else:
                parts += [_pulled_back(batch, here)] if here else []
    if parts:
        return torch.cat(parts)
    return torch.empty(0, problem.space.size, dtype=problem.dtype, device=problem.space.device)


def _pulled_back(at: Linearisation, samples: range) -> Tensor:
    """The same where they are too large to be recorded: a backward pass for each."""
    rows = []
    for n in samples:
        only = torch.zeros_like(at.point.residual)
        only[n] = at.point.residual_by_sample[n]
        gradients = at.vjp(only, last=n == samples[-1])
        rows.append(torch.cat([p.reshape(-1) for p in gradients]))
    return torch.stack(rows)


def _problem(name: str, given: Any, own: Problem | None, space: ParameterSpace) -> Problem:
    """The problem of an argument, on the operator's parameters."""
    if given is None and own is not None:
        return own
    if isinstance(given, Problem):
        problem = given
    elif own is None:
        raise ValueError(
            f"scores: {name}: the factors were loaded or are an operator's value, so that there is neither model nor "
            f"data; expected a risk, got {type(given).__name__}"
        )
    elif isinstance(given, (LinearOperator, nn.Module)):
        raise TypeError(f"scores: {name}: expected data or a risk, got {type(given).__name__}")
    else:
        try:
            problem = own.on(given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"scores: {name}: {error}") from error
    if problem.space.shapes != space.shapes or problem.space.names != space.names:
        raise ValueError(
            f"scores: {name}: it has other parameters than the operator: {list(problem.space.shapes.items())[:5]}, "
            f"expected {list(space.shapes.items())[:5]}"
        )
    for what in ("dtype", "device"):
        if getattr(problem.space, what) != getattr(space, what):
            raise ValueError(
                f"scores: {name}: its parameters have {what} {getattr(problem.space, what)}, those of the operator "
                f"{getattr(space, what)}"
            )
    return problem
