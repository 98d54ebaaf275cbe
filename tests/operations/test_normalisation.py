"""Batch, group, instance and RMS norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from facets import N, apart, assert_tangent, by_double_backward, per_sample, tangents, together

ROWS = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


test_a_tangent_is_the_derivative = tangents(
    {
        "rms_norm": lambda x: F.rms_norm(x, (4,), x[0]),
    }
)

test_samples_are_seen_apart_and_never_against_the_jacobian = apart(
    {
        "batch norm": ((N, 3), lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3))),
        "rms norm": ((N, 3), lambda x: F.rms_norm(x, (3,))),
        "group norm": ((N, 4, 2), lambda x: F.group_norm(x, 2)),
        "instance norm": ((N, 3, 5), lambda x: F.instance_norm(x)),
    }
)

test_nothing_is_said_where_samples_may_meet = together(
    {
        "normalised by the batch": ((N, 3), lambda x: F.batch_norm(x, None, None, training=True)),
    }
)

test_per_sample_gradients_are_those_of_each_sample_alone = per_sample(
    {
        "batch norm, weight": (
            (2,),
            lambda w: F.batch_norm(ROWS, ROWS[0, :, 0], ROWS[1, :, 0] ** 2, w),
        ),
        "batch norm, bias": (
            (2,),
            lambda w: F.batch_norm(ROWS, ROWS[0, :, 0], ROWS[1, :, 0] ** 2, None, w),
        ),
        "group norm, weight": ((2,), lambda w: F.group_norm(ROWS, 2, w)),
        "group norm, bias": ((2,), lambda w: F.group_norm(ROWS, 1, ROWS[0, :, 0], w)),
        "RMS norm": ((3,), lambda w: F.rms_norm(ROWS, (3,), w)),
    }
)


#: shape, whether there is a weight, a bias
CHANNELS = {
    "affine": ((4, 3, 2, 5), True, True),
    "without bias": ((4, 3, 5), True, False),
    "without weight": ((4, 3, 5), False, True),
    "plain": ((4, 3, 2, 2), False, False),
    "no positions": ((4, 3), True, True),
    "one channel": ((4, 1, 5), True, True),
}


@pytest.mark.parametrize("moving", ["all", "input", "parameters"])
@pytest.mark.parametrize("name", CHANNELS)
def test_the_tangent_of_batch_norm_is_that_of_elementary_operations(name, moving, device):
    shape, *parts = CHANNELS[name]
    kind = {"dtype": torch.float64, "device": device}
    mean, variance = torch.randn(shape[1], **kind), torch.rand(shape[1], **kind) + 0.5
    x = torch.randn(shape, **kind).requires_grad_(moving != "parameters")
    affine = [
        torch.randn(shape[1], **kind).requires_grad_(moving != "input") if has else None
        for has in parts
    ]
    moved = [t for t in (x, *affine) if t is not None and t.requires_grad]
    if not moved:
        pytest.skip("without parameters none moves")
    y = F.batch_norm(x, mean, variance, *affine, eps=1e-2)
    assert y.grad_fn.name() in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0")
    along = (-1, *[1] * (len(shape) - 2))
    z = (x - mean.view(along)) / (variance + 1e-2).sqrt().view(along)
    weight, bias = affine
    z = z if weight is None else z * weight.view(along)
    z = z if bias is None else z + bias.view(along)
    assert_tangent(y, moved, lambda v: by_double_backward(z, moved, v))
