"""Solves and eigenpairs of F_emp through the N×N Gram matrix of per-sample gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.arguments import as_integer
from curvext.operators.sample_gradients import SampleGradients
from curvext.problem import Problem

#: while rounding of ‖F_emp‖ is below this share of λ, each refinement gains a digit or two
_SHARE_OF_ROUNDING = 1e-2


def solve(problem: Problem, b: Tensor, damping: float, call: str) -> Tensor:
    """(F_emp + λ I)⁻¹ b for b ``[P, K]`` by Woodbury's identity; see ``EmpiricalFisherOperator.solve``.

    Args:
        problem: the risk.
        b: right-hand sides.
        damping: λ > 0.
        call: the description that ranks compare.

    Raises:
        ValueError: λ is lost in the rounding of float64 beside ‖F_emp‖.
    """
    rows = SampleGradients(problem)
    gram = rows.gram(call, [b]).double().mul_(problem.outer_scale())
    norm = float(gram.norm())  # a bound of ‖F_emp‖, at most √N of it
    amplified = norm * torch.finfo(rows.dtype).eps > _SHARE_OF_ROUNDING * damping
    if amplified and rows.dtype is not torch.float64:
        rows = SampleGradients(problem, wide=True)
        gram = rows.gram(f"{call}, in float64").mul_(problem.outer_scale())
    return _refined(rows, b.to(rows.dtype), gram, norm, damping, problem.outer_scale())


def _refined(
    rows: SampleGradients, b: Tensor, gram: Tensor, norm: float, damping: float, scale: float
) -> Tensor:
    """The best of Woodbury's answer ``[P, K]`` and its refinements.

    Raises:
        ValueError: its residual is not small beside ‖F_emp + λ‖ ‖x‖.
    """
    gram.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(gram)
    too_small = f"solve: damping: λ = {damping:.3g} is too small beside ‖F_emp‖ ≤ {norm:.1e}: "
    if int(failed):
        raise ValueError(too_small + "their sum is singular to rounding; raise damping")
    x, left, size = torch.zeros_like(b), b, b.norm(dim=0)
    for _ in range(4):
        inner = torch.cholesky_solve(rows.times(left).double(), factor).to(b.dtype)
        trial = x + (left - rows.transposed_times(inner).mul_(scale)) / damping
        rest = b - rows.transposed_times(rows.times(trial)).mul_(scale) - damping * trial
        length = rest.norm(dim=0)
        better = ~(length >= size)  # nan, which only CUDA lets in, is returned
        halved = length < size / 2
        x, left = torch.where(better, trial, x), torch.where(better, rest, left)
        size = torch.where(better, length, size)
        if not bool(halved.any()):
            break
    length = b.norm(dim=0)
    reach = torch.maximum((norm + damping) * x.norm(dim=0), length)
    if bool((size > torch.finfo(b.dtype).eps ** (2 / 3) * reach).any()):
        worst = float((size / length).max())
        raise ValueError(too_small + f"the residual is {worst:.1e} ‖b‖; raise damping")
    return x


def eigenvectors(problem: Problem, k: int, call: str) -> tuple[Tensor, Tensor]:
    """The ``k`` leading eigenvalues of F_emp, ascending, and an orthonormal basis ``[P, k]`` of eigenvectors.

    Raises:
        ValueError: ``k`` exceeds the numerical rank of F_emp, which is at most N.
    """
    dtype = problem.dtype
    rows = SampleGradients(problem)
    gram = rows.gram(call).double()
    scale = problem.outer_scale()
    values, vectors = torch.linalg.eigh(gram.mul_(scale))
    floor = max(float(values[-1]), 0.0) * len(values) * torch.finfo(dtype).eps
    rank = min(int((values > floor).sum()), problem.space.size)
    k = as_integer("eigh: k", k, 1, rank, "the numerical rank of F_emp here")
    values, vectors = values[-k:], vectors[:, -k:]
    lifted = rows.transposed_times(vectors.to(dtype)).mul_((scale / values).sqrt().to(dtype))
    # lifting keeps an orthonormal basis orthonormal up to rounding, which grows as values fall
    basis, triangle = torch.linalg.qr(lifted.double())
    return values.to(dtype), (basis * triangle.diagonal().sign()).to(dtype)
