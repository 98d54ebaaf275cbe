"""The kernels: tensors in, tensors out, unnormalised sums; native where built, PyTorch references elsewhere."""

from .._extension import ReferenceFallbackWarning
from ._registry import use_reference
from .mse_hessian_mm import mse_hessian_mm
from .mse_sample import mse_sample
from .outer_cov import outer_cov
from .outer_dot import outer_dot
from .outer_gram import outer_gram
from .outer_norm import outer_norm
from .outer_square import outer_square
from .outer_sum import outer_sum
from .sigmoid_hessian_mm import sigmoid_hessian_mm
from .sigmoid_sample import sigmoid_sample
from .softmax_hessian_mm import softmax_hessian_mm
from .softmax_residual import softmax_residual
from .softmax_root_mm import softmax_root_mm
from .softmax_root_t_mm import softmax_root_t_mm
from .softmax_sample import softmax_sample

__all__ = [
    "ReferenceFallbackWarning",
    "mse_hessian_mm",
    "mse_sample",
    "outer_cov",
    "outer_dot",
    "outer_gram",
    "outer_norm",
    "outer_square",
    "outer_sum",
    "sigmoid_hessian_mm",
    "sigmoid_sample",
    "softmax_hessian_mm",
    "softmax_residual",
    "softmax_root_mm",
    "softmax_root_t_mm",
    "softmax_sample",
    "use_reference",
]
