"""A second opinion on a risk: its quantities recomputed by plain PyTorch and compared."""

from curvext.check.comparison import second_opinion
from curvext.check.plain import Plain
from curvext.check.result import CheckResult, CheckRow

__all__ = ["CheckResult", "CheckRow", "Plain", "second_opinion"]
