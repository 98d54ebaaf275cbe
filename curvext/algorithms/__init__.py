"""What products answer: solvers, spectra, estimators. They see only shape, dtype, device and matvec."""

from curvext.algorithms.cg import cg
from curvext.algorithms.comparison import compare
from curvext.algorithms.condition_number import condition_number
from curvext.algorithms.critical_point import critical_point
from curvext.algorithms.diagonal import diagonal
from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.objective import objective
from curvext.algorithms.rank import effective_rank, null_space_dimension
from curvext.algorithms.spectral_density import spectral_density
from curvext.algorithms.steps import (
    gauss_newton_step,
    natural_gradient_step,
    newton_step,
    take_step,
)
from curvext.algorithms.trace import trace

__all__ = [
    "cg",
    "compare",
    "condition_number",
    "critical_point",
    "diagonal",
    "effective_rank",
    "eigsh",
    "gauss_newton_step",
    "natural_gradient_step",
    "newton_step",
    "null_space_dimension",
    "objective",
    "spectral_density",
    "take_step",
    "trace",
]
