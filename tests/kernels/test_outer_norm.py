"""outer_norm against per-sample gradients formed in float64."""

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from windows import IMAGES, windows_of
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_norm


def sample_inputs(V, N, S, I, O, dtype, device="cpu") -> tuple[Tensor, Tensor]:
    a = torch.randn(N, S, I, dtype=torch.float64).to(device, dtype)
    g = torch.randn(V, N, S, O, dtype=torch.float64).to(device, dtype)
    return a, g


def oracle(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same with absolute values, which every rounding error is measured by."""
    a, g = a.double(), g.double()
    result = (g.mT @ a).square().sum((2, 3))
    magnitude = (g.abs().mT @ a.abs()).square().sum((2, 3))
    return result, magnitude


def rounding_bound(a: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """All three ways are sums over s, t, i and o of four factors: the sizes of the sums, and the steps between them."""
    _, _, S, O = g.shape
    u = unit_roundoff(torch.promote_types(a.dtype, torch.float32))
    return (S * S + 2 * S + a.shape[2] * O.bit_length() + a.shape[2] + O + 8) * 1.01 * u * magnitude


def check(a: Tensor, g: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
    expected, magnitude = oracle(a, g)
    what = f"a {list(a.shape)}, g {list(g.shape)}"
    for size in workspaces:
        with workspace(size):
            actual = outer_norm(a, g)
        assert actual.dtype == torch.promote_types(a.dtype, torch.float32)
        bound = rounding_bound(a, g, magnitude)
        assert_within(actual, expected, bound, f"{what}, workspace {size}")


# one position, by inner products of positions, by gradients
SHAPES = [
    (1, 5, 1, 37, 29),
    (3, 4, 1, 37, 29),
    (2, 3, 4, 37, 29),
    (1, 5, 33, 5, 7),
    (3, 2, 17, 6, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_norm_of_the_formed_gradient_for_every_dtype(shape, dtype, device, simd):
    check(*sample_inputs(*shape, dtype, device))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129])
@pytest.mark.parametrize("axis", ["V", "N", "S", "I", "O"])
def test_every_axis_may_have_any_size(axis, size, device):
    sizes = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7} | {axis: size}
    check(*sample_inputs(*sizes.values(), torch.float32, device))


@pytest.mark.parametrize(
    "shape", [(2, 700, 40, 129, 70), (2, 90, 100, 90, 200), (1, 25, 1, 300, 90000)]
)
def test_several_pieces_of_samples_agree_with_one(shape, device):
    check(*sample_inputs(*shape, torch.float32, device), workspaces=(0,))


def test_many_positions_of_half_precision_are_summed_before_the_square(device):
    check(*sample_inputs(1, 1, 30000, 50, 30, torch.bfloat16, device), workspaces=(0,))


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_larger_buffers_are_read_in_place(shape, dtype, device, simd):
    a, g = sample_inputs(*shape, dtype, device)
    check(slice_of_larger(a), slice_of_larger(g))


def test_transposed_and_expanded_inputs_are_right(device):
    a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
    g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
    check(a, g)
    check(a[:, :1], g[:, :, :1])


@pytest.mark.parametrize("shape", SHAPES)
def test_two_calls_give_identical_bits(shape, dtype, device):
    a, g = sample_inputs(*shape, dtype, device)
    assert torch.equal(outer_norm(a, g), outer_norm(a, g))


def test_half_precision_products_are_accumulated_in_float32(device):
    a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
    assert outer_norm(a, a[None]).item() == 4096.0**2


def test_squares_of_half_precision_inputs_do_not_overflow(device):
    a = torch.full((1, 1, 1), 3000.0, dtype=torch.float16, device=device)
    assert outer_norm(a, a[None]).item() == pytest.approx(3000.0**4, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_reaches_only_its_sample(shape, device):
    a, g = sample_inputs(*shape, torch.float32, device)
    g[0, 1, 0, 2] = float("nan")
    found = outer_norm(a, g).isnan()
    assert found[0, 1] and found.sum() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees(shape, dtype, device):
    a, g = sample_inputs(*shape, dtype, device)
    expected, magnitude = oracle(a, g)
    bound = rounding_bound(a, g, magnitude)
    assert_within(reference.outer_norm(a, g), expected, bound, "reference")
    with kernels.use_reference():
        assert torch.equal(outer_norm(a, g), reference.outer_norm(a, g))


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(
        torch.ops.curvext.outer_norm.default, sample_inputs(2, 3, 4, 5, 6, dtype, device)
    )


def test_it_compiles_to_the_same_values():
    a, g = sample_inputs(1, 3, 4, 5, 6, torch.float32)
    compiled = torch.compile(lambda a, g: outer_norm(a, g) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, g), outer_norm(a, g) + 1)


def test_a_gradient_is_refused_by_name():
    a, g = sample_inputs(1, 2, 2, 3, 3, torch.float64)
    with pytest.raises(RuntimeError, match="outer_norm: has no gradient with respect to a or g"):
        outer_norm(a.requires_grad_(), g).sum().backward()


BAD_CALLS = [
    (torch.zeros(2, 3), torch.zeros(1, 2, 3, 4), ValueError, r"a has shape \[2, 3\]"),
    (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), ValueError, r"expected \[V, N, S, O\]"),
    (torch.zeros(2, 3, 4), torch.zeros(1, 2, 5, 4), ValueError, r"expected \[V, 2, 3, O\]"),
    (torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(1, 2, 3, 4), TypeError, "a has dtype"),
    (torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 4).double(), TypeError, "expected the same dtype"),
]


@pytest.mark.parametrize("a, g, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(a, g, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="outer_norm: .*" + message),
    ):
        outer_norm(a, g)


@pytest.mark.parametrize("image, channels, kernel, stride", IMAGES)
def test_windows_of_an_image_are_taken_as_if_written_out(
    image, channels, kernel, stride, dtype, device, simd
):
    windows, a, g = windows_of(image, channels, kernel, stride, dtype, device)
    expected, magnitude = oracle(a, g)
    bound = rounding_bound(a, g, magnitude)
    for there in (g, g.contiguous()):
        assert_within(outer_norm(windows, there), expected, bound, f"{image}")
    with kernels.use_reference():
        assert_within(outer_norm(windows, g), expected, bound, "reference")


def test_windows_that_do_not_fit_g_are_refused(device):
    a, g = torch.zeros(2, 3, 4, 1, 5, device=device), torch.zeros(1, 2, 11, 6, device=device)
    with pytest.raises(ValueError, match=r"outer_norm: g has shape .*12, O\] beside windows"):
        outer_norm(a, g)
    with kernels.use_reference(), pytest.raises(ValueError, match=r"beside windows"):
        outer_norm(a, g)
