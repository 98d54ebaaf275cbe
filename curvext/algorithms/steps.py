"""Second-order steps: Newton, Hessian-free Gauss-Newton, natural gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvext.algorithms.cg import cg
from curvext.algorithms.linear_system import Preconditioner
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.risks import HasFisher, HasGGN, HasGradient, HasHessian, HasSpace
from curvext.algorithms.together import together
from curvext.arguments import as_choice, as_number, check_dense, check_risk
from curvext.results import CGResult, Step


@together
def newton_step(
    risk: HasHessian,
    damping: float = 0.0,
    tol: float | None = None,
    maxiter: int | None = None,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
) -> Step:
    """The Newton step: s = −(H + λI)⁻¹ ∇L, by conjugate gradients on products with the Hessian.

    H may be indefinite. Where conjugate gradients meet a direction of negative curvature, s is their last
    iterate before it (truncated Newton): a direction of descent, unless ``x0`` was none, or zero at the first;
    ``step.cg.negative_curvature`` has the direction, and ``next_damping`` a λ without it.

    Args:
        risk: a :class:`curvext.EmpiricalRisk`. The model is not moved; see :func:`curvext.take_step`.
        damping: λ ≥ 0, in units of H.
        tol, maxiter, x0, preconditioner, progress: as for :func:`curvext.cg`. In training a loose ``tol`` or a
            few iterations are enough, and the step before, shrunk a little, is a good ``x0``.

    Returns:
        Step(step, damping, predicted_reduction, value, cg).

    Cost: a gradient, conjugate gradients, and one product.

    Source: Dembo & Steihaug (1983), Truncated-Newton algorithms for large-scale unconstrained optimization.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.ones(2, 1)))
        >>> cx.take_step(risk, cx.newton_step(risk))  # a quadratic: one step is enough
        >>> torch.allclose(model.weight, torch.ones(1, 2), atol=1e-4)
        True
    """
    options = dict(tol=tol, maxiter=maxiter, x0=x0, preconditioner=preconditioner)
    check_risk("newton_step", risk, ("gradient", "hessian"))
    return _by_cg(risk, risk.hessian(), damping, progress=progress, **options)


@together
def gauss_newton_step(
    risk: HasGGN,
    damping: float = 1e-3,
    tol: float | None = None,
    maxiter: int | None = None,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
) -> Step:
    """The Hessian-free step: s = −(G + λI)⁻¹ ∇L, by conjugate gradients on products with the GGN.

    G is positive semidefinite for a convex loss, so s is a direction of descent. λ says how far the
    quadratic model is trusted: after the step ``next_damping`` compares its promise with the new loss.

        step = cx.gauss_newton_step(risk, damping, maxiter=30)
        cx.take_step(risk, step)
        damping = step.next_damping(risk.value())

    Args:
        risk: a :class:`curvext.EmpiricalRisk`. The model is not moved; see :func:`curvext.take_step`.
        damping: λ ≥ 0, in units of G.
        tol, maxiter, x0, preconditioner, progress: as for :func:`curvext.cg`.

    Returns:
        Step(step, damping, predicted_reduction, value, cg).

    Cost: a gradient, conjugate gradients, and one product.

    Source: Martens (2010), Deep learning via Hessian-free optimization.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss()
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.arange(2)))
        >>> before, step = risk.value(), cx.gauss_newton_step(risk, damping=0.1)
        >>> cx.take_step(risk, step)
        >>> risk.value() < before
        True
    """
    options = dict(tol=tol, maxiter=maxiter, x0=x0, preconditioner=preconditioner)
    check_risk("gauss_newton_step", risk, ("gradient", "ggn"))
    return _by_cg(risk, risk.ggn(), damping, progress=progress, **options)


@together
def natural_gradient_step(
    risk: HasFisher,
    damping: float = 1e-3,
    kind: str = "exact",
    samples: int = 1,
    seed: int = 0,
    tol: float | None = None,
    maxiter: int | None = None,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
) -> Step:
    """The natural gradient: s = −(F + λI)⁻¹ ∇L, steepest descent where distance is that of distributions.

    Args:
        risk: a :class:`curvext.EmpiricalRisk`. The model is not moved; see :func:`curvext.take_step`.
        damping: λ ≥ 0, in units of F.
        kind: which F. "exact" is the Fisher matrix, by conjugate gradients; for softmax cross-entropy it is
            G. "mc" is its estimate from ``samples`` labels drawn for each datum from ``seed``. "empirical" is
            F_emp, which is no Fisher matrix (see :class:`curvext.EmpiricalFisherOperator`), but is solved
            exactly through its N×N Gram matrix; λ must be positive.
        tol, maxiter, x0, preconditioner, progress: as for :func:`curvext.cg`; not for "empirical".

    Returns:
        Step(step, damping, predicted_reduction, value, cg); ``cg`` is None for "empirical".

    Raises:
        ValueError: ``kind`` is another, or an option of conjugate gradients is given with "empirical".

    Cost: a gradient, the solution, and one product.

    Source: Amari (1998), Natural gradient works efficiently in learning; Martens (2020), New insights and
    perspectives on the natural gradient method.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss()
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.arange(2)))
        >>> one = cx.natural_gradient_step(risk, damping=0.1).step
        >>> torch.allclose(one, cx.gauss_newton_step(risk, damping=0.1).step, atol=1e-4)
        True
    """
    kind = as_choice("natural_gradient_step: kind", kind, ("exact", "mc", "empirical"))
    options = dict(tol=tol, maxiter=maxiter, x0=x0, preconditioner=preconditioner)
    check_risk("natural_gradient_step", risk, ("gradient", "fisher"))
    if kind == "exact":
        return _by_cg(risk, risk.fisher(), damping, progress=progress, **options)
    if kind == "mc":
        return _by_cg(risk, risk.mc_fisher(samples, seed), damping, progress=progress, **options)
    given = [name for name, option in options.items() if option is not None]
    if given:
        raise ValueError(
            f"natural_gradient_step: {given[0]}: kind='empirical' is solved without conjugate gradients"
        )
    fisher, gradient = risk.empirical_fisher(), risk.gradient()
    return _step(risk, fisher, gradient, -fisher.solve(gradient, damping), damping, None)


@together
def take_step(risk: HasSpace, step: Tensor | Step, length: float = 1.0) -> None:
    """Moves the model's parameters in place: θ ← θ + length · step.

    Args:
        risk: a :class:`curvext.EmpiricalRisk`, whose selected parameters these are.
        step: a :class:`curvext.Step`, as the step functions return it, or ``[P]``.
        length: a factor.

    Raises:
        TypeError: ``step`` is neither.
        ValueError: ``step`` has another shape or device, or is not finite, or ``length`` is not.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.ones(2, 1)))
        >>> cx.take_step(risk, torch.tensor([1.0, 2.0]), length=0.5)
        >>> model.weight.tolist()
        [[0.5, 1.0]]
    """
    check_risk("take_step", risk, ("space",))
    space = risk.space
    step = step.step if isinstance(step, Step) else step
    check_dense("take_step: step", step)
    length = as_number("take_step: length", length, "a finite number")
    if step.shape != (space.size,):
        raise ValueError(f"take_step: step: expected shape [{space.size}], got {list(step.shape)}")
    if step.device != space.device:
        raise ValueError(f"take_step: step: expected device {space.device}, got {step.device}")
    if not bool(step.isfinite().all()):
        raise ValueError("take_step: step: contains nan or inf")
    with torch.no_grad():
        for p, s in space.in_memory(step):
            p.add_(s, alpha=length)


def _by_cg(
    risk: HasGradient, operator: SymmetricOperator, damping: float, progress: bool, **options: Any
) -> Step:
    gradient = risk.gradient()
    found = cg(operator, -gradient, damping, progress=progress, **options)
    return _step(risk, operator, gradient, found.x, damping, found)


def _step(
    risk: HasGradient,
    operator: SymmetricOperator,
    gradient: Tensor,
    step: Tensor,
    damping: float,
    found: CGResult | None,
) -> Step:
    """The step with the reduction that the undamped quadratic model predicts."""
    curved = Products(operator, "step").vector(step)
    slope, bend = (gradient.double() @ step.double()), (step.double() @ curved.double())
    reduction = -float(slope) - float(bend) / 2
    return Step(step, float(damping), reduction, risk.value(), found)
