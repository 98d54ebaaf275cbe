"""The curvature matrices as linear operators, one file each, and their algebra."""

from curvext.operators.diagonals import fisher_diagonal, ggn_diagonal, per_sample_gradient_norms
from curvext.operators.empirical_fisher import EmpiricalFisherOperator
from curvext.operators.fisher import FisherOperator, MCFisherOperator
from curvext.operators.ggn import GGNOperator
from curvext.operators.hessian import HessianOperator, ModelCurvatureOperator
from curvext.operators.identity import Identity
from curvext.operators.linear import LinearOperator

__all__ = [
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "Identity",
    "LinearOperator",
    "MCFisherOperator",
    "ModelCurvatureOperator",
    "fisher_diagonal",
    "ggn_diagonal",
    "per_sample_gradient_norms",
]
