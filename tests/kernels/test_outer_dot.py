"""outer_dot against per-sample gradients formed in float64."""

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_dot


def sample_inputs(V, N, S, I, O, K, dtype, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(N, S, I), (V, N, S, O), (K, O, I)]
    a, g, W = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in shapes)
    return a, g, W


def oracle(a: Tensor, g: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same with absolute values, which every rounding error is measured by."""
    a, g, W = a.double(), g.double(), W.double()
    flat = W.flatten(1).T
    return (g.mT @ a).flatten(2) @ flat, (g.abs().mT @ a.abs()).flatten(2) @ flat.abs()


def rounding_bound(a: Tensor, g: Tensor, magnitude: Tensor) -> Tensor:
    """A sum of S O I products of three factors, in whatever order."""
    _, _, S, O = g.shape
    u = unit_roundoff(torch.promote_types(a.dtype, torch.float32))
    return (S + O + a.shape[2] + 4) * 1.01 * u * magnitude


def check(a: Tensor, g: Tensor, W: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
    expected, magnitude = oracle(a, g, W)
    what = f"a {list(a.shape)}, g {list(g.shape)}, W {list(W.shape)}"
    for size in workspaces:
        with workspace(size):
            actual = outer_dot(a, g, W)
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
def test_it_equals_the_product_with_the_formed_gradient_for_every_dtype(shape, dtype, device, simd):
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
    W = torch.randn(5, 9, 7, device=device).mT
    check(a, g, W)
    check(a, g, W[:1])


@pytest.mark.parametrize("shape", SHAPES)
def test_two_calls_give_identical_bits(shape, dtype, device):
    inputs = sample_inputs(*shape, dtype, device)
    assert torch.equal(outer_dot(*inputs), outer_dot(*inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_in_the_dtype_of_the_result_are_taken_as_they_are(shape, device):
    a, g, _ = sample_inputs(*shape, torch.bfloat16, device)
    check(a, g, torch.randn(shape[5], shape[4], shape[3], device=device))


def test_half_precision_products_are_accumulated_in_float32(device):
    a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
    W = torch.ones(5, 1, 1, dtype=torch.bfloat16, device=device)
    assert outer_dot(a, a[None], W[:1]).item() == 4096.0
    assert outer_dot(a, a[None], W).eq(4096.0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_reaches_only_its_sample(shape, device):
    a, g, W = sample_inputs(*shape, torch.float32, device)
    g[0, 1, 0, 2] = float("nan")
    found = outer_dot(a, g, W).isnan()
    assert found[0, 1].all() and found.sum() == shape[5]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_in_a_matrix_reaches_only_its_column(shape, device):
    a, g, W = sample_inputs(*shape, torch.float32, device)
    W[0, 1, 2] = float("nan")
    found = outer_dot(a, g, W).isnan()
    assert found[..., 0].all() and not found[..., 1:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees(shape, dtype, device):
    a, g, W = sample_inputs(*shape, dtype, device)
    expected, magnitude = oracle(a, g, W)
    assert_within(
        reference.outer_dot(a, g, W), expected, rounding_bound(a, g, magnitude), "reference"
    )
    with kernels.use_reference():
        assert torch.equal(outer_dot(a, g, W), reference.outer_dot(a, g, W))


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(
        torch.ops.curvext.outer_dot.default, sample_inputs(2, 3, 4, 5, 6, 3, dtype, device)
    )


def test_it_compiles_to_the_same_values():
    inputs = sample_inputs(1, 3, 4, 5, 6, 2, torch.float32)
    compiled = torch.compile(lambda *x: outer_dot(*x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), outer_dot(*inputs) + 1)


def test_a_gradient_is_refused_by_name():
    a, g, W = sample_inputs(1, 2, 2, 3, 3, 1, torch.float64)
    with pytest.raises(RuntimeError, match="outer_dot: has no gradient with respect to a, g or W"):
        outer_dot(a, g, W.requires_grad_()).sum().backward()


A, G, W = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(6, 5, 4)
BAD_CALLS = [
    (A[0], G, W, ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
    (A, G[0], W, ValueError, r"g has shape \[2, 3, 5\], expected \[V, N, S, O\]"),
    (A, G[:, :, :2], W, ValueError, r"expected \[V, 2, 3, O\]"),
    (A, G, W[0], ValueError, r"W has shape \[5, 4\], expected \[K, 5, 4\]"),
    (A, G, W.mT, ValueError, r"W has shape \[6, 4, 5\], expected \[K, 5, 4\]"),
    (A.int(), G, W, TypeError, "a has dtype"),
    (A, G.double(), W, TypeError, "expected the same dtype"),
    (A, G, W.half(), TypeError, "W has dtype"),
    (A.half(), G.half(), W.double(), TypeError, "W has dtype"),
]


@pytest.mark.parametrize("a, g, W, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(a, g, W, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="outer_dot: .*" + message),
    ):
        outer_dot(a, g, W)


@pytest.mark.parametrize(
    "shape", [(1, 129, 1, 33, 13, 1), (1, 5, 40, 300, 7, 2), (2, 5, 9, 3, 4, 1)]
)
def test_it_is_right_by_either_kind_of_product(shape, dtype, products, simd):
    check(*sample_inputs(*shape, dtype))


def test_a_long_sample_is_taken_in_pieces_by_either_kind_of_product(products):
    check(*sample_inputs(1, 2, 1500, 1025, 17, 1, torch.float32), workspaces=(0,))
