"""curvext: the curvature of a network's loss as linear operators.

Hessian, generalized Gauss-Newton and Fisher matrices of an empirical risk, exact and never formed,
on fused C++ and CUDA kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from curvext._version import __version__
from curvext.algorithms import (
    cg,
    compare,
    condition_number,
    critical_point,
    diagonal,
    effective_rank,
    eigsh,
    gauss_newton_step,
    natural_gradient_step,
    newton_step,
    null_space_dimension,
    objective,
    spectral_density,
    take_step,
    trace,
)
from curvext.check import CheckResult, CheckRow
from curvext.kronecker import (
    BlockDiagonalOperator,
    EKFACOperator,
    KFACOperator,
    ShampooOperator,
    load_factors,
    save_factors,
)
from curvext.losses import CausalLMLoss
from curvext.operators import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    Identity,
    LinearOperator,
    MCFisherOperator,
    ModelCurvatureOperator,
    fisher_diagonal,
    ggn_diagonal,
    per_sample_gradient_norms,
)
from curvext.plotting import plot_shares
from curvext.results import (
    CGResult,
    Comparison,
    ConditionNumber,
    CriticalPoint,
    Density,
    EigenResult,
    Equality,
    Estimate,
    Step,
)
from curvext.risk import EmpiricalRisk
from curvext.storage import load_diagonal, save_diagonal
from curvext.training import backward

if TYPE_CHECKING:
    from curvext.algorithms.dfp import DFP as DFP

__all__ = [
    "BlockDiagonalOperator",
    "CGResult",
    "CausalLMLoss",
    "CheckResult",
    "CheckRow",
    "Comparison",
    "ConditionNumber",
    "CriticalPoint",
    "Density",
    "EKFACOperator",
    "EigenResult",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "Equality",
    "Estimate",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "Identity",
    "KFACOperator",
    "LinearOperator",
    "MCFisherOperator",
    "ModelCurvatureOperator",
    "ShampooOperator",
    "Step",
    "__version__",
    "backward",
    "cg",
    "compare",
    "condition_number",
    "critical_point",
    "diagonal",
    "effective_rank",
    "eigsh",
    "fisher_diagonal",
    "gauss_newton_step",
    "ggn_diagonal",
    "load_diagonal",
    "load_factors",
    "natural_gradient_step",
    "newton_step",
    "null_space_dimension",
    "objective",
    "per_sample_gradient_norms",
    "plot_shares",
    "save_diagonal",
    "save_factors",
    "spectral_density",
    "take_step",
    "trace",
]


def __getattr__(name: str) -> Any:
    """``DFP`` derives from a class of SciPy's, which is imported when it is asked for."""
    if name != "DFP":
        raise AttributeError(f"module 'curvext' has no attribute {name!r}")
    try:
        return import_module("curvext.algorithms.dfp").DFP
    except ImportError as error:
        raise ImportError("curvext.DFP: needs SciPy: pip install scipy") from error
