"""The kernels: tensors in, tensors out, unnormalised sums; native where built, PyTorch references elsewhere."""

from .._extension import ReferenceFallbackWarning
from ._registry import use_reference
from .outer_dot import outer_dot
from .outer_gram import outer_gram
from .outer_norm import outer_norm
from .outer_square import outer_square
from .outer_sum import outer_sum
from .softmax_hessian_mm import softmax_hessian_mm

__all__ = [
    "ReferenceFallbackWarning",
    "outer_dot",
    "outer_gram",
    "outer_norm",
    "outer_square",
    "outer_sum",
    "softmax_hessian_mm",
    "use_reference",
]
