"""Functions element by element."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from facets import MASK, N, X, apart, per_sample, tangents

ROWS = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


test_a_tangent_is_the_derivative = tangents(
    {
        "abs": torch.abs,
        "celu": F.celu,
        "elu": F.elu,
        "selu": F.selu,
        "erf": torch.erf,
        "exp": torch.exp,
        "hardswish": F.hardswish,
        "hardtanh": F.hardtanh,
        "leaky_relu": F.leaky_relu,
        "log": lambda x: x.abs().log(),
        "logsigmoid": F.logsigmoid,
        "mish": F.mish,
        "neg": torch.neg,
        "pow": lambda x: x**3,
        "reciprocal": torch.reciprocal,
        "relu": torch.relu,
        "rsqrt": lambda x: (x * x).rsqrt(),
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "softplus": F.softplus,
        "softshrink": F.softshrink,
        "tanh": torch.tanh,
        "threshold": lambda x: F.threshold(x, 0.1, 2.0),
        "where": lambda x: torch.where(X > 0, x, x.square()),
        "clamp": lambda x: x.clamp(-0.5, 0.5),
        "to another dtype": lambda x: (x.float() * 2).double(),
        "acos": lambda x: (x / 10).acos(),
        "asin": lambda x: (x / 10).asin(),
        "atan": torch.atan,
        "cos": torch.cos,
        "cosh": torch.cosh,
        "expm1": torch.expm1,
        "log10": lambda x: x.abs().log10(),
        "log1p": lambda x: x.abs().log1p(),
        "log2": lambda x: x.abs().log2(),
        "sin": torch.sin,
        "sinh": torch.sinh,
        "sqrt": lambda x: x.abs().sqrt(),
        "tan": torch.tan,
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "tanh": ((N, 3), torch.tanh),
        "broadcast over columns": ((N, 1), lambda x: x * torch.ones(N, 3)),
        "where": ((N, 3), lambda x: torch.where(MASK, x, -x)),
        "masked_fill": ((N, 3), lambda x: x.masked_fill(MASK, 2.0)),
        "clamp": ((N, 3), lambda x: x.clamp(-0.5, 0.5)),
        "lerp": ((N, 3), lambda x: torch.lerp(x, x.exp(), 0.3)),
        "complex": ((N, 3), lambda x: torch.complex(x, x * 2).abs()),
        "to float32 and back": ((N, 3), lambda x: x.float().double()),
        "triangle of matrices": ((N, 3, 3), lambda x: x.tril()),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "prelu": ((1, 2, 1), lambda w: torch.ops.aten._prelu_kernel(ROWS, w)),
    }
)
