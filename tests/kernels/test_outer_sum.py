"""outer_sum against per-sample gradients formed in float64."""

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_sum


def sample_inputs(V, N, S, I, O, K, dtype, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(N, S, I), (V, N, S, O), (K, V, N)]
    a, g, c = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in shapes)
    return a, g, c


def oracle(a: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same with absolute values, which every rounding error is measured by."""
    a, g, c = a.double(), g.double(), c.double().flatten(1)
    shape = (c.shape[0], g.shape[3], a.shape[2])
    result = c @ (g.mT @ a).flatten(2).flatten(0, 1)
    magnitude = c.abs() @ (g.abs().mT @ a.abs()).flatten(2).flatten(0, 1)
    return result.view(shape), magnitude.view(shape)


def rounding_bound(a: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """A sum of V N S products of three factors, in whatever order."""
    V, N, S, _ = g.shape
    u = unit_roundoff(torch.promote_types(a.dtype, torch.float32))
    return (V + N * S + V * N + 4) * 1.01 * u * magnitude


def check(a: Tensor, g: Tensor, c: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
    expected, magnitude = oracle(a, g, c)
    what = f"a {list(a.shape)}, g {list(g.shape)}, c {list(c.shape)}"
    for size in workspaces:
        with workspace(size):
            actual = outer_sum(a, g, c)
        assert actual.dtype == torch.promote_types(a.dtype, torch.float32)
        bound = rounding_bound(a, g, magnitude)
        assert_within(actual, expected, bound, f"{what}, workspace {size}")


# position by position, and with the gradients formed
SHAPES = [
    (1, 5, 1, 37, 29, 1),
    (3, 4, 1, 37, 29, 3),
    (2, 3, 4, 37, 29, 2),
    (1, 5, 33, 5, 7, 4),
    (2, 3, 17, 9, 6, 5),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_sum_of_the_formed_gradients_for_every_dtype(shape, dtype, device, simd):
    check(*sample_inputs(*shape, dtype, device))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129])
@pytest.mark.parametrize("axis", ["V", "N", "S", "I", "O", "K"])
def test_every_axis_may_have_any_size(axis, size, device):
    sizes = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7, "K": 3} | {axis: size}
    check(*sample_inputs(*sizes.values(), torch.float32, device))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 300, 8, 30, 1030, 1),
        (1, 2, 1500, 17, 1025, 1),
        (1, 900, 4, 300, 70, 8),
        (1, 3, 9, 9000, 40, 3),
    ],
)
def test_several_pieces_agree_with_one(shape, device):
    check(*sample_inputs(*shape, torch.float32, device), workspaces=(0,))


def test_many_positions_of_half_precision_are_summed_in_pieces(device):
    check(*sample_inputs(1, 1, 30000, 50, 30, 3, torch.bfloat16, device), workspaces=(0,))


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_larger_buffers_are_read_in_place(shape, dtype, device, simd):
    check(*map(slice_of_larger, sample_inputs(*shape, dtype, device)))


def test_transposed_and_expanded_inputs_are_right(device):
    a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
    g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
    c = torch.randn(5, 4, 2, device=device).mT
    check(a, g, c)
    check(a, g, c[:1])


@pytest.mark.parametrize("shape", SHAPES)
def test_two_calls_give_identical_bits(shape, dtype, device):
    inputs = sample_inputs(*shape, dtype, device)
    assert torch.equal(outer_sum(*inputs), outer_sum(*inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_in_the_dtype_of_the_result_are_taken_as_they_are(shape, device):
    a, g, _ = sample_inputs(*shape, torch.bfloat16, device)
    check(a, g, torch.randn(shape[5], shape[0], shape[1], device=device))


def test_half_precision_products_are_accumulated_in_float32(device):
    a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
    c = torch.ones(5, 1, 1, dtype=torch.bfloat16, device=device)
    assert outer_sum(a, a[None], c[:1]).item() == 4096.0
    assert outer_sum(a, a[None], c).eq(4096.0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_reaches_only_its_row(shape, device):
    a, g, c = sample_inputs(*shape, torch.float32, device)
    g[0, 1, 0, 2] = float("nan")
    found = outer_sum(a, g, c).isnan()
    assert found[:, 2].all() and found.sum() == shape[5] * shape[3]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_in_a_weight_reaches_only_its_sum(shape, device):
    a, g, c = sample_inputs(*shape, torch.float32, device)
    c[0, 0, 1] = float("nan")
    found = outer_sum(a, g, c).isnan()
    assert found[0].all() and not found[1:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees(shape, dtype, device):
    a, g, c = sample_inputs(*shape, dtype, device)
    expected, magnitude = oracle(a, g, c)
    assert_within(
        reference.outer_sum(a, g, c), expected, rounding_bound(a, g, magnitude), "reference"
    )
    with kernels.use_reference():
        assert torch.equal(outer_sum(a, g, c), reference.outer_sum(a, g, c))


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(
        torch.ops.curvext.outer_sum.default, sample_inputs(2, 3, 4, 5, 6, 3, dtype, device)
    )


def test_it_compiles_to_the_same_values():
    inputs = sample_inputs(1, 3, 4, 5, 6, 2, torch.float32)
    compiled = torch.compile(lambda *x: outer_sum(*x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), outer_sum(*inputs) + 1)


def test_a_gradient_is_refused_by_name():
    a, g, c = sample_inputs(1, 2, 2, 3, 3, 1, torch.float64)
    with pytest.raises(RuntimeError, match="outer_sum: has no gradient with respect to a, g or c"):
        outer_sum(a, g, c.requires_grad_()).sum().backward()


A, G, C = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(6, 1, 2)
BAD_CALLS = [
    (A[0], G, C, ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
    (A, G[0], C, ValueError, r"g has shape \[2, 3, 5\], expected \[V, N, S, O\]"),
    (A, G[:, :, :2], C, ValueError, r"expected \[V, 2, 3, O\]"),
    (A, G, C[0], ValueError, r"c has shape \[1, 2\], expected \[K, 1, 2\]"),
    (A, G, C.mT, ValueError, r"c has shape \[6, 2, 1\], expected \[K, 1, 2\]"),
    (A.int(), G, C, TypeError, "a has dtype"),
    (A, G.double(), C, TypeError, "expected the same dtype"),
    (A, G, C.half(), TypeError, "c has dtype"),
    (A.half(), G.half(), C.double(), TypeError, "c has dtype"),
]


@pytest.mark.parametrize("a, g, c, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(a, g, c, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="outer_sum: .*" + message),
    ):
        outer_sum(a, g, c)


@pytest.mark.parametrize("shape", [(1, 129, 1, 33, 13, 1), (2, 5, 40, 300, 7, 1)])
def test_it_is_right_by_either_kind_of_product(shape, dtype, products, simd):
    check(*sample_inputs(*shape, dtype))
