"""The curvature matrices as linear operators, one file each, and their algebra."""

from curvext.operators.empirical_fisher import (
    EmpiricalFisherOperator,
    fisher_diagonal,
    per_sample_gradient_norms,
)
from curvext.operators.ggn import GGNOperator
from curvext.operators.hessian import HessianOperator, ModelCurvatureOperator
from curvext.operators.linear import Identity, LinearOperator

__all__ = [
    "EmpiricalFisherOperator",
    "GGNOperator",
    "HessianOperator",
    "Identity",
    "LinearOperator",
    "ModelCurvatureOperator",
    "fisher_diagonal",
    "per_sample_gradient_norms",
]
