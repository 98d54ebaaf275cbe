"""The truth of each kernel, in a few lines of PyTorch; what the native kernels are tested against."""

from .outer_dot import outer_dot
from .outer_gram import outer_gram
from .outer_norm import outer_norm
from .outer_square import outer_square
from .outer_sum import outer_sum
from .softmax_hessian_mm import softmax_hessian_mm

__all__ = [
    "outer_dot",
    "outer_gram",
    "outer_norm",
    "outer_square",
    "outer_sum",
    "softmax_hessian_mm",
]
