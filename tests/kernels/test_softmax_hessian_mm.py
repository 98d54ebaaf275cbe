"""softmax_hessian_mm against the dense C x C output Hessian in float64, by autograd of the cross-entropy."""

import math

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor

from curvext import kernels, reference
from curvext.kernels import softmax_hessian_mm


def sample_inputs(
    shape, dim, dtype, device="cpu", vectors=2, scale=3.0
) -> tuple[Tensor, Tensor, Tensor, int]:
    z = (scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)
    u = torch.randn(vectors, *shape, dtype=torch.float64).to(device, dtype)
    w = torch.rand(z.sum(dim).shape, dtype=torch.float64).add(0.5).to(device, dtype)
    return z, u, w, dim


def oracle(z: Tensor, u: Tensor, w: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sum over j of p_i p_j (u_i - u_j): differences alone, so nothing cancels. With it the same in absolute values."""
    z, w = z.double().movedim(dim, -1), w.double()
    u = u.double().movedim(dim % z.dim() + 1, -1)
    p = torch.softmax(z, -1)
    difference = u[..., :, None] - u[..., None, :]
    scale = w[..., None] * p
    result = scale * (p[..., None, :] * difference).sum(-1)
    # Differences to the likeliest class are what the kernel forms.
    top = z.argmax(-1, keepdim=True).expand(*u.shape[:-1], 1)
    d = (u - u.gather(-1, top)).abs()
    magnitude = scale.abs() * (d + (p * d).sum(-1, keepdim=True))
    back = dim % z.dim() + 1
    return result.movedim(-1, back), magnitude.movedim(-1, back)


def rounding_bound(z: Tensor, magnitude: Tensor, result: Tensor, dim: int) -> Tensor:
    """Relative to the magnitude: exponential and its argument, the two sums, and the steps of the final product."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    u = unit_roundoff(dtype)
    spread = (z.double().amax(dim) - z.double().amin(dim)).max().item() if z.numel() else 0.0
    exponential = 4 + min(
        spread, -math.log(torch.finfo(dtype).tiny)
    )  # z - max is rounded once: |z - max| u
    terms = 2 * min(z.shape[dim], 2048)
    bound = (2 * exponential + terms + 8) * u * magnitude
    bound = (
        bound + torch.finfo(dtype).tiny * z.shape[dim]
    )  # p below the smallest normal number counts as 0
    if z.dtype != dtype:
        bound = (
            bound
            + unit_roundoff(z.dtype) * (result.abs() + bound)
            + torch.finfo(z.dtype).smallest_normal * 2**-7
        )
    return bound


def check(z: Tensor, u: Tensor, w: Tensor, dim: int) -> None:
    expected, magnitude = oracle(z, u, w, dim)
    actual = softmax_hessian_mm(z, u, w, dim)
    assert actual.dtype == u.dtype
    bound = rounding_bound(z, magnitude, expected, dim)
    assert_within(actual, expected, bound, f"z {list(z.shape)}, dim {dim}, {z.dtype}")


def test_the_oracle_is_the_hessian_of_the_cross_entropy():
    z, u, _, _ = sample_inputs((5,), 0, torch.float64, vectors=1)
    hessian = torch.autograd.functional.hessian(
        lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(2)), z
    )
    expected, _ = oracle(z, u, torch.tensor(1.0), 0)
    torch.testing.assert_close(hessian @ u[0], expected[0], rtol=1e-12, atol=1e-12)


LAYOUTS = [
    ((4, 10), 1),
    ((10, 4), 0),
    ((2, 7, 5), 1),
    ((3, 4, 40), -1),
    ((2, 9, 3, 15), 1),
    ((2, 65, 130), 1),
]


@pytest.mark.parametrize("shape, dim", LAYOUTS)
def test_the_class_dimension_may_stand_anywhere(shape, dim, dtype, device, simd):
    check(*sample_inputs(shape, dim, dtype, device))


@pytest.mark.parametrize(
    "classes", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
)
def test_every_number_of_classes_is_right(classes, device, simd):
    check(*sample_inputs((3, classes), 1, torch.float32, device))
    check(*sample_inputs((classes, 3), 0, torch.float64, device))


@pytest.mark.parametrize("inner", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 65])
def test_every_number_of_positions_behind_the_classes_is_right(inner, device, simd):
    check(*sample_inputs((2, 5, inner), 1, torch.float32, device))


@pytest.mark.parametrize("classes", [2047, 2048, 2049])
def test_sums_over_many_classes_keep_their_accuracy(classes, device):
    check(*sample_inputs((2, classes), 1, torch.float32, device, vectors=1))
    check(*sample_inputs((classes, 2), 0, torch.float32, device, vectors=1))


@pytest.mark.parametrize(
    "shape, dim", [((0, 5), 1), ((5, 0), 1), ((0, 5), 0), ((2, 3, 0), 1), ((2, 0, 3), 1)]
)
def test_empty_tensors_give_empty_results(shape, dim, device):
    z, u = torch.zeros(shape, device=device), torch.zeros(2, *shape, device=device)
    assert softmax_hessian_mm(z, u, z.sum(dim), dim).shape == u.shape


@pytest.mark.parametrize("vectors", [0, 1, 3])
@pytest.mark.parametrize("shape, dim", [((3, 9), 1), ((9, 40), 0)])
def test_any_number_of_vectors_reads_the_same_logits(vectors, shape, dim, device):
    check(*sample_inputs(shape, dim, torch.float32, device, vectors=vectors))


def test_a_single_position_without_further_dimensions_is_right(device):
    check(*sample_inputs((6,), 0, torch.float64, device))


@pytest.mark.parametrize("shape, dim", LAYOUTS)
def test_slices_of_larger_buffers_are_read_in_place(shape, dim, device, simd):
    z, u, w, dim = sample_inputs(shape, dim, torch.float32, device)
    check(slice_of_larger(z), slice_of_larger(u), slice_of_larger(w), dim)


def test_classes_that_are_neighbours_in_memory_are_rows_wherever_they_stand(device):
    z, u, w, _ = sample_inputs((3, 4, 10), 2, torch.float32, device)
    check(z.transpose(1, 2), u.transpose(2, 3), w, 1)


@pytest.mark.parametrize("dim", [0, 1])
def test_logits_of_ten_thousand_stay_finite(dim, dtype, device, simd):
    z, u, w, dim = sample_inputs((33, 34), dim, dtype, device)
    z = z.sign() * 1e4
    assert softmax_hessian_mm(z, u, w, dim).isfinite().all()


@pytest.mark.parametrize("dim", [0, 1])
def test_a_certain_class_does_not_cancel(dim, device, simd):
    shape = (17, 17)
    z, u, w, dim = sample_inputs(shape, dim, torch.float32, device, scale=0.1)
    z.diagonal().fill_(30.0)  # p of the likeliest is 1 - 1e-12: 1 in float32
    u += 100.0
    expected, _ = oracle(z, u, w, dim)
    actual = softmax_hessian_mm(z, u, w, dim).double()
    relative = ((actual - expected).abs() / expected.abs()).diagonal(dim1=1, dim2=2)
    assert relative.max() < 1e-4


@pytest.mark.parametrize("dim", [0, 1])
def test_masked_classes_have_probability_zero(dim, device, simd):
    z, u, w, dim = sample_inputs((20, 20), dim, torch.float32, device)
    z.fill_diagonal_(-math.inf)
    expected, _ = oracle(z, u, w, dim)
    actual = softmax_hessian_mm(z, u, w, dim)
    assert (actual.diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_position_of_weight_zero_is_exactly_zero_whatever_stands_there(dim, poison, device, simd):
    z, u, w, dim = sample_inputs((19, 19), dim, torch.float32, device)
    clean = softmax_hessian_mm(z, u, w, dim).select(2 - dim, 5).clone()
    w[3] = 0
    z.select(1 - dim, 3).fill_(poison)
    u.select(2 - dim, 3).fill_(poison)
    actual = softmax_hessian_mm(z, u, w, dim)
    assert (actual.select(2 - dim, 3) == 0).all()
    assert torch.equal(actual.select(2 - dim, 5), clean)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_nan_reaches_only_its_position(dim, dtype, device, simd):
    z, u, w, dim = sample_inputs((37, 37), dim, dtype, device)
    z.select(1 - dim, 4)[7] = math.nan
    found = softmax_hessian_mm(z, u, w, dim).isnan()
    assert found.select(2 - dim, 4).all() and found.sum() == 2 * 37


def test_weights_may_be_float32_beside_half_precision_logits(device):
    z, u, w, dim = sample_inputs((4, 9), 1, torch.bfloat16, device)
    assert torch.equal(softmax_hessian_mm(z, u, w.float(), dim), softmax_hessian_mm(z, u, w, dim))


@pytest.mark.parametrize("shape, dim", [((65, 200), 1), ((200, 65), 0)])
def test_two_calls_give_identical_bits(shape, dim, dtype, device):
    inputs = sample_inputs(shape, dim, dtype, device)
    assert torch.equal(softmax_hessian_mm(*inputs), softmax_hessian_mm(*inputs))


@pytest.mark.parametrize("shape, dim", LAYOUTS)
def test_the_reference_agrees(shape, dim, dtype, device):
    inputs = sample_inputs(shape, dim, dtype, device)
    expected, magnitude = oracle(*inputs)
    bound = rounding_bound(inputs[0], magnitude, expected, dim)
    assert_within(reference.softmax_hessian_mm(*inputs), expected, bound, "reference")
    with kernels.use_reference():
        assert torch.equal(softmax_hessian_mm(*inputs), reference.softmax_hessian_mm(*inputs))


@pytest.mark.parametrize("shape, dim", [((3, 5), 1), ((3, 5, 4), 1)])
def test_it_is_a_well_formed_op(shape, dim, dtype, device):
    z, u, w, dim = sample_inputs(shape, dim, dtype, device)
    torch.library.opcheck(
        torch.ops.curvext.softmax_hessian_mm.default, (z, u.requires_grad_(), w, dim)
    )


def test_rows_behind_a_transposition_are_a_well_formed_op():
    z, u, w, _ = sample_inputs((3, 4, 5), 2, torch.float32)
    arguments = (z.transpose(1, 2), u.transpose(2, 3), w, 1)
    torch.library.opcheck(torch.ops.curvext.softmax_hessian_mm.default, arguments)


def test_it_is_differentiable_in_u_twice(device):
    z, u, w, dim = sample_inputs((3, 5), 1, torch.float64, device)
    product = lambda u: softmax_hessian_mm(z, u, w, dim)  # noqa: E731
    assert torch.autograd.gradcheck(product, u.requires_grad_())
    assert torch.autograd.gradgradcheck(product, u)


@pytest.mark.parametrize("argument", [0, 2])
def test_a_gradient_with_respect_to_logits_or_weights_is_refused(argument):
    inputs = sample_inputs((3, 5), 1, torch.float64)
    inputs[argument].requires_grad_()
    with pytest.raises(
        RuntimeError, match="softmax_hessian_mm: has a gradient with respect to u alone"
    ):
        softmax_hessian_mm(*inputs).sum().backward()


Z = torch.zeros(2, 3)
U = torch.zeros(1, 2, 3)
W = torch.zeros(2)
BAD_CALLS = [
    ((torch.tensor(1.0), U, W, 0), ValueError, "z is a scalar"),
    ((Z, U, W, 2), ValueError, "dim is 2"),
    ((Z, U, W, -3), ValueError, "dim is -3"),
    ((Z, Z, W, 1), ValueError, r"u has shape \[2, 3\], expected \[K, \*z.shape\]"),
    ((Z, U[:, :1], W, 1), ValueError, r"u has shape \[1, 1, 3\]"),
    ((Z, U, W, 0), ValueError, r"w has shape \[2\], expected \[3\]"),
    ((Z.long(), U, W, 1), TypeError, "z has dtype"),
    ((Z, U.double(), W, 1), TypeError, "u has dtype"),
    ((Z, U, W.double(), 1), TypeError, "w has dtype"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(arguments, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="softmax_hessian_mm: .*" + message),
    ):
        softmax_hessian_mm(*arguments)
