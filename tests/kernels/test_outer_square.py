"""outer_square against a loop over samples in float64, by the definition of the matrix product."""

import pytest
import torch
from bounds import assert_within, runs_cuda_sources, slice_of_larger, unit_roundoff
from torch import Tensor
from windows import IMAGES, windows_of
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_square


def sample_inputs(V, N, S, I, O, dtype, device="cpu") -> tuple[Tensor, Tensor]:
    a = torch.randn(N, S, I, dtype=torch.float64).to(device, dtype)
    g = torch.randn(V, N, S, O, dtype=torch.float64).to(device, dtype)
    return a, g


def oracle(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same sum over absolute values, which every rounding error is measured by."""
    a, g = a.double(), g.double()
    result = torch.zeros(g.shape[3], a.shape[2], dtype=torch.float64, device=a.device)
    magnitude = torch.zeros_like(result)
    for v in range(g.shape[0]):
        for n in range(a.shape[0]):
            result += (g[v, n].T @ a[n]) ** 2
            magnitude += (g[v, n].T.abs() @ a[n].abs()) ** 2
    return result, magnitude


def rounding_bound(a: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """2 (S + 2) u for the squared product of S terms, (V N + 1) u for the sum of the squares."""
    V, N, S, _ = g.shape
    dtype = torch.promote_types(a.dtype, torch.float32)
    on_tensor_cores = runs_cuda_sources(a) and a.dtype != torch.float64
    u = 2.0**-16 if on_tensor_cores else unit_roundoff(dtype)
    return (2 * (S + 2) + V * N + 1) * 1.01 * u * magnitude


def check(a: Tensor, g: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
    expected, magnitude = oracle(a, g)
    what = f"a {list(a.shape)}, g {list(g.shape)}"
    for size in workspaces:
        with workspace(size):
            actual = outer_square(a, g)
        assert actual.dtype == torch.promote_types(a.dtype, torch.float32)
        bound = rounding_bound(a, g, magnitude)
        assert_within(actual, expected, bound, f"{what}, workspace {size}")


@pytest.mark.parametrize(
    "shape", [(1, 3, 1), (3, 4, 1), (1, 5, 2), (2, 3, 7), (1, 2, 16), (2, 2, 33)]
)
def test_it_equals_the_loop_over_samples_for_every_dtype(shape, dtype, device, simd):
    check(*sample_inputs(*shape, 37, 29, dtype, device))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129, 255, 257])
@pytest.mark.parametrize("axis", ["V", "N", "S", "I", "O"])
def test_every_axis_may_have_any_size(axis, size, device):
    sizes = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7} | {axis: size}
    check(*sample_inputs(*sizes.values(), torch.float32, device))


@pytest.mark.parametrize("samples", [1, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("features", [(1, 1), (13, 33), (300, 5), (11, 600)])
def test_one_position_is_right_by_either_kind_of_product(features, samples, dtype, products, simd):
    O, I = features
    check(*sample_inputs(1, samples, 1, I, O, dtype))


@pytest.mark.parametrize(
    "features", [(1, 1), (11, 31), (12, 32), (13, 33), (143, 255), (145, 257), (5, 300), (300, 5)]
)
@pytest.mark.parametrize("positions", [1, 3])
def test_tails_of_tiles_and_blocks_are_right(features, positions, device, simd):
    check(*sample_inputs(1, 4, positions, features[1], features[0], torch.float32, device))


@pytest.mark.parametrize("positions", [255, 256, 257, 513])
def test_positions_beyond_one_panel_are_summed_before_the_square(positions, device, simd):
    check(*sample_inputs(2, 2, positions, 33, 13, torch.float64, device))


@pytest.mark.parametrize("samples", [255, 256, 257, 1000])
def test_many_samples_of_one_position_are_right(samples, device, simd):
    check(*sample_inputs(3, samples, 1, 33, 13, torch.float64, device))


def test_a_block_per_thread_and_a_run_of_samples_per_thread_agree_with_the_loop(device):
    check(*sample_inputs(1, 129, 3, 3, 2, torch.float64, device))
    check(*sample_inputs(1, 5, 3, 200, 300, torch.float64, device))


def test_slices_of_larger_buffers_are_read_in_place(dtype, device, simd):
    a, g = sample_inputs(2, 5, 3, 33, 13, dtype, device)
    check(slice_of_larger(a), slice_of_larger(g))


def test_transposed_and_expanded_inputs_are_right(device):
    a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
    g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
    check(a, g)


def test_two_calls_give_identical_bits(dtype, device):
    a, g = sample_inputs(2, 65, 17, 130, 140, dtype, device)
    assert torch.equal(outer_square(a, g), outer_square(a, g))


def test_half_precision_products_are_accumulated_in_float32(device):
    a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
    assert outer_square(a, a[None]).item() == 4096.0**2


@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 3, 7), (1, 2, 33)])
def test_tf32_is_taken_on_cuda_where_the_setting_allows_it(shape, device):
    a, g = sample_inputs(*shape, 37, 140, torch.float32, device)
    exact = outer_square(a, g)
    expected, magnitude = oracle(a, g)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        actual = outer_square(a, g)
    finally:
        torch.set_float32_matmul_precision(before)
    bound = 2.0**6 * rounding_bound(a, g, magnitude)  # from 2^-16 to 2^-10
    assert_within(actual, expected, bound, "TF32")
    # one position is folded, which needs more than TF32 has
    assert torch.equal(actual, exact) == (shape[2] == 1 or not runs_cuda_sources(a))


def test_squares_of_half_precision_inputs_do_not_overflow(device):
    a = torch.full((1, 1, 1), 3000.0, dtype=torch.float16, device=device)
    assert outer_square(a, a[None]).item() == pytest.approx(3000.0**4, rel=1e-4)


def test_a_nan_reaches_only_its_row_and_column(device):
    a, g = sample_inputs(1, 3, 2, 40, 20, torch.float32, device)
    g[0, 1, 1, 4] = float("nan")
    found = outer_square(a, g).isnan()
    assert found[4].all() and found.sum() == 40


@pytest.mark.parametrize("positions", [1, 2])
def test_an_infinity_gives_infinities_in_its_column(positions, dtype, device):
    a, g = sample_inputs(1, 3, positions, 40, 20, dtype, device)
    a[1, 0, 4] = float("inf")
    found = outer_square(a, g)
    assert found[:, 4].isposinf().all()
    assert found.isfinite().sum() == 39 * 20


def test_values_beyond_the_largest_of_bfloat16_are_right(device):
    a, g = sample_inputs(1, 3, 4, 5, 7, torch.float32, device)
    a[1, 2, 3] = 3.4e38  # rounded to bfloat16 it would be infinite
    g *= 1e-30
    expected, magnitude = oracle(a, g)
    bound = rounding_bound(a, g, magnitude)
    # in the other columns the squares are below the smallest number
    assert_within(outer_square(a, g)[:, 3], expected[:, 3], bound[:, 3], "its column")


def test_the_reference_agrees(dtype, device):
    a, g = sample_inputs(2, 3, 5, 7, 11, dtype, device)
    expected, magnitude = oracle(a, g)
    bound = rounding_bound(a, g, magnitude)
    assert_within(reference.outer_square(a, g), expected, bound, "reference")
    with kernels.use_reference():
        assert torch.equal(outer_square(a, g), reference.outer_square(a, g))


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(
        torch.ops.curvext.outer_square.default, sample_inputs(2, 3, 4, 5, 6, dtype, device)
    )


def test_it_compiles_to_the_same_values():
    a, g = sample_inputs(1, 3, 4, 5, 6, torch.float32)
    compiled = torch.compile(
        lambda a, g: outer_square(a, g) + 1, backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(a, g), outer_square(a, g) + 1)


def test_a_gradient_is_refused_by_name():
    a, g = sample_inputs(1, 2, 2, 3, 3, torch.float64)
    with pytest.raises(RuntimeError, match="outer_square: has no gradient with respect to a or g"):
        outer_square(a.requires_grad_(), g).sum().backward()


BAD_CALLS = [
    (
        torch.zeros(2, 3),
        torch.zeros(1, 2, 3, 4),
        ValueError,
        r"a has shape \[2, 3\], expected \[N, S, I\]",
    ),
    (
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, 4),
        ValueError,
        r"g has shape \[2, 3, 4\], expected \[V, N, S, O\]",
    ),
    (torch.zeros(2, 3, 4), torch.zeros(1, 2, 5, 4), ValueError, r"expected \[V, 2, 3, O\]"),
    (torch.zeros(2, 3, 4), torch.zeros(1, 3, 3, 4), ValueError, r"expected \[V, 2, 3, O\]"),
    (torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(1, 2, 3, 4), TypeError, "a has dtype"),
    (
        torch.zeros(2, 3, 4),
        torch.zeros(1, 2, 3, 4, dtype=torch.float64),
        TypeError,
        "expected the same dtype",
    ),
]


@pytest.mark.parametrize("a, g, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(a, g, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="outer_square: .*" + message),
    ):
        outer_square(a, g)


@pytest.mark.parametrize("image, channels, kernel, stride", IMAGES)
def test_windows_of_an_image_are_taken_as_if_written_out(
    image, channels, kernel, stride, dtype, device, simd
):
    windows, a, g = windows_of(image, channels, kernel, stride, dtype, device)
    expected, magnitude = oracle(a, g)
    bound = rounding_bound(a, g, magnitude)
    for there in (g, g.contiguous()):
        assert_within(outer_square(windows, there), expected, bound, f"{image}")
    with kernels.use_reference():
        assert_within(outer_square(windows, g), expected, bound, "reference")


def test_windows_that_do_not_fit_g_are_refused(device):
    a, g = torch.zeros(2, 3, 4, 1, 5, device=device), torch.zeros(1, 2, 11, 6, device=device)
    with pytest.raises(ValueError, match=r"outer_square: g has shape .*12, O\] beside windows"):
        outer_square(a, g)
    with kernels.use_reference(), pytest.raises(ValueError, match=r"beside windows"):
        outer_square(a, g)
