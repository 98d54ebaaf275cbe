"""The empirical risk as operators see it."""

from curvext.problem.problem import Pass as Pass
from curvext.problem.problem import Problem as Problem
