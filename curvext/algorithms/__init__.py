"""What products answer: solvers, spectra, estimators. They see only shape, dtype, device and matvec."""

from curvext.algorithms.cg import cg
from curvext.algorithms.critical_point import critical_point
from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.objective import objective
from curvext.algorithms.steps import (
    gauss_newton_step,
    natural_gradient_step,
    newton_step,
    take_step,
)

__all__ = [
    "cg",
    "critical_point",
    "eigsh",
    "gauss_newton_step",
    "natural_gradient_step",
    "newton_step",
    "objective",
    "take_step",
]
