"""Results of algorithms: frozen dataclasses that print themselves."""

from curvext.results.cg import CGResult
from curvext.results.comparison import Comparison, Equality
from curvext.results.condition_number import ConditionNumber
from curvext.results.critical_point import CriticalPoint
from curvext.results.density import Density
from curvext.results.eigenpairs import EigenResult
from curvext.results.estimate import Estimate
from curvext.results.step import Step

__all__ = [
    "CGResult",
    "Comparison",
    "ConditionNumber",
    "CriticalPoint",
    "Density",
    "EigenResult",
    "Equality",
    "Estimate",
    "Step",
]
