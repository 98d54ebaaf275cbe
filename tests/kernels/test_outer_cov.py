"""outer_cov against the sum over rows in float64."""

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_cov


def sample_inputs(M, D, dtype, device="cpu") -> tuple[Tensor, Tensor]:
    x, w = torch.randn(M, D, dtype=torch.float64), torch.randn(M, dtype=torch.float64)
    return x.to(device, dtype), w.to(device, dtype)


def oracle(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same with absolute values, which every rounding error is measured by."""

    def total(x: Tensor, w: Tensor) -> Tensor:
        rows = [w_m * torch.outer(x_m, x_m) for x_m, w_m in zip(x, w, strict=True)]
        return torch.stack(rows).sum(0) if rows else x.new_zeros(x.shape[1], x.shape[1])

    return total(x.double(), w.double()), total(x.double().abs(), w.double().abs())


def rounding_bound(x: Tensor, magnitude: Tensor) -> Tensor:
    """A sum of M terms of two products each, in pieces."""
    u = unit_roundoff(torch.promote_types(x.dtype, torch.float32))
    return (len(x) + 4) * 1.01 * u * magnitude


def check(x: Tensor, w: Tensor) -> None:
    expected, magnitude = oracle(x, w)
    for size in WORKSPACES:
        with workspace(size):
            actual = outer_cov(x, w)
        assert actual.dtype == torch.promote_types(x.dtype, torch.float32)
        assert torch.equal(actual, actual.T), "symmetric to the last bit"
        what = f"{list(x.shape)}, workspace {size}"
        assert_within(actual, expected, rounding_bound(x, magnitude), what)


# one tile, several, and a last one of one column
SHAPES = [(5, 37), (70, 128), (9, 129), (40, 300)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_sum_over_rows_for_every_dtype(shape, dtype, device, simd):
    check(*sample_inputs(*shape, dtype, device))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129])
@pytest.mark.parametrize("axis", ["M", "D"])
def test_every_axis_may_have_any_size(axis, size, device):
    sizes = {"M": 6, "D": 7} | {axis: size}
    check(*sample_inputs(*sizes.values(), torch.float32, device))


def test_several_pieces_of_rows_agree_with_one(device):
    x, w = sample_inputs(9000, 600, torch.float32, device)
    expected = x.double().T @ (w.double().unsqueeze(1) * x.double())
    magnitude = x.double().abs().T @ (w.double().abs().unsqueeze(1) * x.double().abs())
    actual = outer_cov(x, w)
    assert torch.equal(actual, actual.T)
    assert_within(actual, expected, rounding_bound(x, magnitude), "pieces")


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_larger_buffers_are_read_in_place(shape, dtype, device, simd):
    check(*map(slice_of_larger, sample_inputs(*shape, dtype, device)))


def test_transposed_and_expanded_inputs_are_right(device):
    x = torch.randn(9, 150, device=device)
    check(x.T, torch.randn(1, device=device).expand(150))
    check(x[:, ::2], torch.randn(18, device=device)[::2])
    check(x[:1].expand(6, -1), torch.randn(6, device=device))


@pytest.mark.parametrize("shape", SHAPES)
def test_two_calls_give_identical_bits(shape, dtype, device):
    inputs = sample_inputs(*shape, dtype, device)
    assert torch.equal(outer_cov(*inputs), outer_cov(*inputs))


def test_half_precision_is_summed_in_float32_and_weights_may_be_finer(device):
    x = torch.ones(4096, 1, dtype=torch.bfloat16, device=device)
    assert outer_cov(x, x[:, 0]).item() == 4096.0
    fine = torch.full((4096,), 1 + 2.0**-12, device=device)
    assert outer_cov(x, fine).item() == 4097.0


def test_a_nan_reaches_only_its_row_and_column(device):
    x, w = sample_inputs(20, 200, torch.float32, device)
    x[3, 140] = float("nan")
    found = outer_cov(x, w).isnan()
    assert found[140].all() and found[:, 140].all()
    assert found.sum() == 2 * 200 - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees(shape, dtype, device):
    x, w = sample_inputs(*shape, dtype, device)
    expected, magnitude = oracle(x, w)
    actual = reference.outer_cov(x, w)
    assert torch.equal(actual, actual.T)
    assert_within(actual, expected, rounding_bound(x, magnitude), "reference")
    with kernels.use_reference():
        assert torch.equal(outer_cov(x, w), actual)


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(torch.ops.curvext.outer_cov.default, sample_inputs(5, 4, dtype, device))


def test_it_compiles_to_the_same_values():
    inputs = sample_inputs(7, 6, torch.float32)
    compiled = torch.compile(lambda *x: outer_cov(*x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), outer_cov(*inputs) + 1)


def test_a_gradient_is_refused_by_name():
    x, w = sample_inputs(3, 2, torch.float64)
    with pytest.raises(RuntimeError, match="outer_cov: has no gradient with respect to x or w"):
        outer_cov(x.requires_grad_(), w).sum().backward()


X, W = torch.zeros(3, 4), torch.zeros(3)
BAD_CALLS = [
    ((X[0], W), ValueError, r"x has shape \[4\], expected \[M, D\]"),
    ((X, W[:2]), ValueError, r"w has shape \[2\], expected \[3\], a weight for each row of x"),
    ((X, X), ValueError, r"w has shape \[3, 4\], expected \[3\]"),
    ((X.int(), W), TypeError, "x has dtype"),
    ((X, W.double()), TypeError, "w has dtype"),
]


@pytest.mark.parametrize("inputs, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(inputs, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match=f"outer_cov: .*({message})"),
    ):
        outer_cov(*inputs)
