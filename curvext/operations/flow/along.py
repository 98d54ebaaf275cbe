"""Flow of operations that work element by element, or along some dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from curvext.operations.flow.rule import At, Inputs, Outputs, Rule, constant, dimensions, each
from curvext.samples import owners as own
from curvext.samples.owners import Owners

#: a node and its number of dimensions → those along which it mixes
DimsOf = Callable[[At, int], Sequence[int]]


def _elementwise(at: At, out: Outputs) -> Inputs:
    """Inputs are broadcast to the output."""
    if len(at.inputs) == 1:
        return [out[0]]
    return each(at, lambda i: own.summed_to(out[0], at.shape(i)))


def _broadcast(at: At, out: Outputs) -> Inputs:
    return [own.summed_to(out[0], at.shape(0))]


def _first_alone(at: At, out: Outputs) -> Inputs:
    """Element by element in the first input; of the others every element may reach all."""
    return each(at, lambda i: out[0] if i == 0 else constant(at, i, out))


def _loss(at: At, out: Outputs) -> Inputs:
    """A loss of output and target, element by element where nothing is reduced."""
    if at.attribute("reduction") == 0:
        return _elementwise(at, out)
    return each(at, lambda i: constant(at, i, out))


def _nll_loss(at: At, out: Outputs) -> Inputs:
    """ℓ [N, ...] of log-probabilities [N, C, ...], or [C] alone."""
    if at.attribute("reduction") != 0 or len(at.shape(0)) == 1 or out[0] is None:
        return [constant(at, 0, out)]
    return [np.expand_dims(out[0], 1)]


def _all_meet(at: At, out: Outputs) -> Inputs:
    """Every element of an input may reach every element of the outputs."""
    meeting: Owners | None = own.nobody(0)
    for owners in out:
        meeting = own.merged(meeting, own.constant(owners, 0))
    return each(at, lambda i: own.constant(meeting, len(at.shape(i))))


def _local(dims_of: DimsOf) -> Rule:
    """Mixes along some dimensions of its first input, whose others stay where they are; one output, as many of them."""

    def rule(at: At, out: Outputs) -> Inputs:
        if out[0] is None:
            return [None] * len(at.inputs)
        mixed = own.along(out[0], dims_of(at, out[0].ndim))
        return each(at, lambda i: mixed if i == 0 else constant(at, i, out))

    return rule


def _saved_dim(at: At, ndim: int) -> list[int]:
    return dimensions(at.attribute("dim"), ndim)


def _last(count: int) -> DimsOf:
    return lambda at, ndim: range(max(0, ndim - count), ndim)


def _all_but_first(at: At, ndim: int) -> Sequence[int]:
    return range(1, ndim)


def _normalized(at: At, ndim: int) -> Sequence[int]:
    return range(ndim - len(at.attribute("normalized_shape")), ndim)


def _batch_norm(at: At, out: Outputs) -> Inputs:
    """By running statistics element by element, by those of the batch each channel for itself."""
    others = [d for d in range(len(at.out_shape())) if d != 1]
    channels = own.along(out[0], others)
    x = channels if at.attribute("training") else out[0]
    weight = None if channels is None else channels.reshape(-1)
    return each(at, lambda i: weight if i else x)


def _images(at: At, out: Outputs) -> Inputs:
    """Samples in the first dimension of all tensors, each for itself: images, grids, windows."""
    if out[0] is None or any(
        len(at.shape(i)) == 0 or at.shape(i)[0] != at.out_shape()[0]
        for i, wanted in enumerate(at.inputs)
        if wanted
    ):
        return [None] * len(at.inputs)
    one = own.along(out[0], range(1, out[0].ndim))
    return each(
        at, lambda i: None if one is None else one.reshape(-1, *(1,) * (len(at.shape(i)) - 1))
    )


def _cross(at: At, out: Outputs) -> Inputs:
    """Vectors along a dimension, broadcast to each other."""
    one = None if out[0] is None else own.along(out[0], _saved_dim(at, out[0].ndim))
    return each(at, lambda i: own.summed_to(one, at.shape(i)))


def _as_real(at: At, out: Outputs) -> Inputs:
    """Real and imaginary part in a last dimension of their own."""
    one = None if out[0] is None else own.along(out[0], (out[0].ndim - 1,))
    return [None if one is None else one[..., 0]]


def _as_complex(at: At, out: Outputs) -> Inputs:
    return [None if out[0] is None else out[0][..., None]]


def _attention(at: At, out: Outputs) -> Inputs:
    """q, k, v [N, heads, T, E]; a mask, where it has a gradient, broadcast to [N, heads, T, T]."""
    mixed = own.along(out[0], range(1, out[0].ndim)) if out[0] is not None else None
    return each(at, lambda i: mixed if i < 3 else own.summed_to(mixed, at.shape(i)))


def _reduced(at: At, out: Outputs) -> Inputs:
    """Sums, norms, extrema over some dimensions: what is reduced reaches what the result reaches."""
    answer: Owners | None = own.nobody(len(at.shape(0)))
    dims = sorted(_saved_dim(at, len(at.shape(0))))
    for owners in out:
        if owners is not None and owners.ndim < len(at.shape(0)):
            owners = np.expand_dims(owners, tuple(dims))
        answer = own.merged(answer, owners)
    return [answer]


def _whole(at: At, out: Outputs) -> Inputs:
    """One number of all elements."""
    return [constant(at, 0, out)]


def _batched(at: At, out: Outputs) -> Inputs:
    """Matrices in the last two dimensions, each for itself: inputs and outputs have the same dimensions before them."""
    first = next(i for i, wanted in enumerate(at.inputs) if wanted)
    lead = len(at.shape(first)) - 2
    meeting: Owners | None = own.nobody(lead)
    for number, owners in enumerate(out):
        if owners is None or at.out_shape(number)[:lead] != at.shape(first)[:lead]:
            return [None] * len(at.inputs)
        mixed = own.along(owners, range(lead, owners.ndim))
        meeting = own.merged(meeting, None if mixed is None else mixed.reshape(mixed.shape[:lead]))

    def of(i: int) -> Owners | None:
        shape = at.shape(i)
        if meeting is None or shape[:lead] != at.shape(first)[:lead]:
            return None
        return meeting.reshape(meeting.shape + (1,) * (len(shape) - lead))

    return each(at, of)


# fmt: off
_ELEMENTWISE = [
    "Abs", "Acos", "Acosh", "Add", "Addcdiv", "Addcmul", "Alias", "Angle", "Asin", "Asinh", "Atan", "Atan2",
    "Atanh", "Ceil", "Celu", "Clamp", "ClampMax", "ClampMin", "Clone", "Complex", "Conj", "ConjPhysical",
    "Copysign", "Cos", "Cosh", "Deg2Rad", "Digamma", "Div", "Elu", "Erf", "Erfc", "Erfinv", "Exp", "Exp2", "Expm1",
    "Fill", "Floor", "Fmax", "Fmin", "Fmod", "Frac", "Gelu", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh",
    "Hypot", "I0", "IndexFill", "Ldexp", "LeakyRelu", "Lerp", "Lgamma", "Lift", "LiftFresh", "Log", "Log10",
    "Log1P", "Log2", "LogSigmoid", "Logaddexp", "Logaddexp2", "Logit", "MaskedFill", "Maximum", "Minimum", "Mish",
    "Mul", "Mvlgamma", "NanToNum", "NativeDropout", "Neg", "NegView", "Polar", "Polygamma", "Pow", "PreluKernel",
    "Rad2Deg", "Reciprocal", "Relu", "Remainder", "Round", "RreluWithNoise", "Rsqrt", "Rsub", "Sgn", "Sigmoid",
    "Sign", "Silu", "Sin", "Sinc", "Sinh", "Softplus", "Softshrink", "SpecialEntr", "SpecialErfcx", "SpecialI0E",
    "SpecialI1", "SpecialI1E", "SpecialLogNdtr", "SpecialNdtri", "SpecialXlog1Py", "SpecialZeta", "Sqrt", "Sub",
    "Tan", "Tanh", "Threshold", "ToCopy", "Tril", "Triu", "Trunc", "Where", "Xlogy", "Zero", "CopyBackwards",
]
_REDUCED = [
    "Amax", "Amin", "Kthvalue", "LinalgVectorNorm", "Logsumexp", "Max", "Mean", "Median", "Min", "Mode",
    "Nanmedian", "Nansum", "Norm", "Prod", "Std", "StdMean", "Sum", "Var", "VarMean",
]
_BATCHED = [
    "CholeskyInverse", "CholeskySolve", "LinalgCholeskyEx", "LinalgDet", "LinalgEigh", "LinalgInvEx",
    "LinalgLuFactorEx", "LinalgMatrixExp", "LinalgQr", "LinalgSlogdet", "LinalgSolveEx", "LinalgSolveTriangular",
    "LinalgSvd",
]
_POOLS = {
    1: [
        "ReflectionPad1D", "ReplicationPad1D", "UpsampleLinear1D", "UpsampleNearest1D", "UpsampleNearestExact1D",
    ],
    2: [
        "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "AvgPool2D", "FractionalMaxPool2D", "MaxPool2D",
        "MaxPool2DWithIndices", "MaxUnpool2D", "ReflectionPad2D", "ReplicationPad2D", "UpsampleBicubic2D",
        "UpsampleBicubic2DAa", "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleNearest2D",
        "UpsampleNearestExact2D",
    ],
    3: [
        "AdaptiveAvgPool3D", "AdaptiveMaxPool3D", "AvgPool3D", "FractionalMaxPool3D", "MaxPool3DWithIndices",
        "MaxUnpool3D", "PixelShuffle", "PixelUnshuffle", "ReflectionPad3D", "ReplicationPad3D",
        "UpsampleNearest3D", "UpsampleNearestExact3D", "UpsampleTrilinear3D",
    ],
}
_ATTENTION = [
    "ScaledDotProductCudnnAttention", "ScaledDotProductEfficientAttention", "ScaledDotProductFlashAttention",
    "ScaledDotProductFlashAttentionForCpu",
]
# fmt: on

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys(_BATCHED, _batched),
    **{name: _local(_last(n)) for n, names in _POOLS.items() for name in names},
    **dict.fromkeys(_ATTENTION, _attention),
    **dict.fromkeys(("BinaryCrossEntropyWithLogits", "BinaryCrossEntropy", "HuberLoss"), _loss),
    **dict.fromkeys(("MseLoss", "SmoothL1Loss", "SoftMarginLoss"), _loss),
    **dict.fromkeys(("NllLoss", "NllLoss2D"), _nll_loss),
    **dict.fromkeys(("Cumprod", "Cumsum", "Cummax", "Cummin", "Glu"), _local(_saved_dim)),
    **dict.fromkeys(("LogSoftmax", "Logcumsumexp", "SafeSoftmax", "Softmax"), _local(_saved_dim)),
    **dict.fromkeys(("FftC2C", "FftC2R", "FftR2C"), _local(_saved_dim)),
    **dict.fromkeys(("FusedRmsNorm", "NativeLayerNorm"), _local(_normalized)),
    **dict.fromkeys(("Col2Im", "Im2Col"), _images),
    **dict.fromkeys(("CudnnBatchNorm", "NativeBatchNorm"), _batch_norm),
    "CopySlices": _first_alone,
    "Dot": _all_meet,
    "Expand": _broadcast,
    "GridSampler2D": _images,
    "GridSampler3D": _images,
    "LinalgCross": _cross,
    "NativeGroupNorm": _local(_all_but_first),
    "Trace": _whole,
    "Vdot": _all_meet,
    "ViewAsComplex": _as_complex,
    "ViewAsReal": _as_real,
}
#: forms of an operation with a number of their own that reduce to one number, or are element by element
RULES_BY_NAME: dict[str, Rule] = {
    f"{name}Backward{number}": _whole
    for name, number in (
        ("Max", 1),
        ("Mean", 0),
        ("Median", 0),
        ("Min", 1),
        ("Nanmedian", 0),
        ("Norm", 0),
        ("Norm", 2),
        ("Prod", 0),
        ("Sum", 0),
    )
}
