"""What products answer: solvers, spectra, estimators. They see only shape, dtype, device and matvec."""

from curvext.algorithms.cg import cg
from curvext.algorithms.critical_point import critical_point
from curvext.algorithms.eigsh import eigsh

__all__ = ["cg", "critical_point", "eigsh"]
