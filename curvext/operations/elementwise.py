"""Functions that work element by element, their inputs broadcast to each other."""

from __future__ import annotations

import torch

from curvext.gradients.structured import StructuredGradient
from curvext.operations.broadcasting import broadcast_gradient
from curvext.operations.flow import elementwise
from curvext.operations.node import symmetric
from curvext.operations.operation import Operation, OutputGradient


def _prelu_weight(at: OutputGradient) -> StructuredGradient | None:
    x = at.saved.self
    return broadcast_gradient(at, torch.where(x > 0, 0, x * at.g))


# fmt: off
#: functions of one input
_OF_ONE_INPUT = [
    "Abs", "Acos", "Asin", "Atan", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Expm1", "Hardswish",
    "Hardtanh", "LeakyRelu", "Log", "Log10", "Log1P", "Log2", "LogSigmoid", "Mish", "Neg", "Pow",
    "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Silu", "Sin", "Sinh", "Softplus", "Softshrink", "Sqrt", "Tan",
    "Tanh", "Threshold",
]
_OTHERS = [
    "Acosh", "Addcdiv", "Addcmul", "Angle", "Asinh", "Atan2", "Atanh", "Ceil", "Clamp", "ClampMax",
    "ClampMin", "Complex", "Conj", "ConjPhysical", "Copysign", "Deg2Rad", "Digamma", "Erfc", "Erfinv", "Exp2",
    "Fill", "Floor", "Fmax", "Fmin", "Fmod", "Frac", "Hardshrink", "Hypot", "I0", "IndexFill", "Ldexp",
    "Lerp", "Lgamma", "Lift", "LiftFresh", "Logaddexp", "Logaddexp2", "Logit", "MaskedFill", "Maximum",
    "Minimum", "Mvlgamma", "NanToNum", "NativeDropout", "NegView", "Polar", "Polygamma", "Rad2Deg",
    "Remainder", "Round", "RreluWithNoise", "Rsub", "Sgn", "Sign", "Sinc", "SpecialEntr", "SpecialErfcx",
    "SpecialI0E", "SpecialI1", "SpecialI1E", "SpecialLogNdtr", "SpecialNdtri", "SpecialXlog1Py",
    "SpecialZeta", "Tril", "Triu", "Trunc", "Where", "Xlogy", "Zero",
]
#: further forms of these, with numbers of their own
_FORMS = {
    (1,): [
        "Celu", "Elu", "LeakyRelu", "Threshold", "Acosh", "Asinh", "Atanh", "Clamp", "ClampMax", "ClampMin",
        "ConjPhysical", "Copysign", "Fmod", "IndexFill", "Lerp", "MaskedFill", "Polygamma", "Remainder", "Round",
        "RreluWithNoise", "Rsub",
    ],
    (1, 2): ["Pow", "SpecialXlog1Py", "SpecialZeta", "Xlogy"],
    (1, 2, 3): ["Fill"],
}
# fmt: on

OPERATIONS = {
    **{
        f"{name}Backward0": Operation(tangent=symmetric, flow=elementwise) for name in _OF_ONE_INPUT
    },
    **{f"{name}Backward0": Operation(flow=elementwise) for name in _OTHERS},
    **{
        f"{name}Backward{number}": Operation(flow=elementwise)
        for numbers, names in _FORMS.items()
        for number in numbers
        for name in names
    },
    "PreluKernelBackward0": Operation(per_sample={1: _prelu_weight}, flow=elementwise),
    "ToCopyBackward0": Operation(flow=elementwise, cast=True),
    "torch::autograd::CopyBackwards": Operation(flow=elementwise),
}
