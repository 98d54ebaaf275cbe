"""outer_gram against per-sample gradients formed in float64."""

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference
from curvext.kernels import outer_gram


def sample_inputs(N, S, N2, S2, I, O, dtype, device="cpu") -> tuple[Tensor, ...]:
    shapes = [(N, S, I), (N, S, O), (N2, S2, I), (N2, S2, O)]
    return tuple(torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in shapes)


def oracle(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the same with absolute values, which every rounding error is measured by."""

    def product(a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
        return (g.mT @ a).flatten(1) @ (g2.mT @ a2).flatten(1).T

    wide = [x.double() for x in inputs]
    return product(*wide), product(*(x.abs() for x in wide))


def rounding_bound(inputs: tuple[Tensor, ...], magnitude: Tensor) -> Tensor:
    """By positions: sums of I, O and S S' terms. By gradients: of S, S' and O I, in bands of at most 2^21 features."""
    a, g, a2, _ = inputs
    (_, S, I), O, S2 = a.shape, g.shape[2], a2.shape[1]
    u = unit_roundoff(torch.promote_types(a.dtype, torch.float32))
    return (max(I + O + S * S2, S + S2 + O * I) + 4) * 1.01 * u * magnitude


def check(*inputs: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
    expected, magnitude = oracle(*inputs)
    what = ", ".join(str(list(x.shape)) for x in inputs)
    for size in workspaces:
        with workspace(size):
            actual = outer_gram(*inputs)
        assert actual.dtype == torch.promote_types(inputs[0].dtype, torch.float32)
        bound = rounding_bound(inputs, magnitude)
        assert_within(actual, expected, bound, f"{what}, workspace {size}")


# by inner products of positions, and by gradients
SHAPES = [(5, 1, 4, 1, 37, 29), (3, 2, 4, 3, 37, 29), (5, 9, 4, 17, 5, 7), (3, 33, 6, 20, 6, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_product_of_formed_gradients_for_every_dtype(shape, dtype, device, simd):
    check(*sample_inputs(*shape, dtype, device))


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129])
@pytest.mark.parametrize("axis", ["N", "S", "N2", "S2", "I", "O"])
def test_every_axis_may_have_any_size(axis, size, device):
    sizes = {"N": 3, "S": 2, "N2": 4, "S2": 3, "I": 5, "O": 7} | {axis: size}
    check(*sample_inputs(*sizes.values(), torch.float32, device))


@pytest.mark.parametrize(
    "shape",
    [
        (1100, 1, 1030, 1, 33, 13),
        (400, 3, 9, 2, 70, 65),
        (1, 1100, 2, 1, 90, 80),
        (150, 9, 140, 8, 150, 70),
    ],
)
def test_several_pieces_agree_with_one(shape, device):
    check(*sample_inputs(*shape, torch.float32, device), workspaces=(0,))


def test_many_positions_of_half_precision_are_summed_in_pieces(device):
    check(*sample_inputs(1, 30000, 2, 7, 50, 30, torch.bfloat16, device), workspaces=(0,))


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_larger_buffers_are_read_in_place(shape, dtype, device, simd):
    check(*map(slice_of_larger, sample_inputs(*shape, dtype, device)))


def test_transposed_and_expanded_inputs_are_right(device):
    a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
    g = torch.randn(1, 3, 7, device=device).expand(4, 3, 7)
    check(a, g, a[:2, :1], g[:2, :1])
    check(a.repeat(1, 9, 1), g.repeat(1, 9, 1), a, g)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_calls_give_identical_bits(shape, dtype, device):
    inputs = sample_inputs(*shape, dtype, device)
    assert torch.equal(outer_gram(*inputs), outer_gram(*inputs))


def test_half_precision_products_are_accumulated_in_float32(device):
    a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
    assert outer_gram(a, a, a, a).item() == 4096.0**2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_nan_reaches_only_its_sample(shape, device):
    inputs = sample_inputs(*shape, torch.float32, device)
    inputs[1][1, 0, 2] = float("nan")
    inputs[2][3, 0, 1] = float("nan")
    found = outer_gram(*inputs).isnan()
    assert found[1].all() and found[:, 3].all()
    assert found.sum() == found.shape[0] + found.shape[1] - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees(shape, dtype, device):
    inputs = sample_inputs(*shape, dtype, device)
    expected, magnitude = oracle(*inputs)
    actual = reference.outer_gram(*inputs)
    assert_within(actual, expected, rounding_bound(inputs, magnitude), "reference")
    with kernels.use_reference():
        assert torch.equal(outer_gram(*inputs), actual)


def test_it_is_a_well_formed_op(dtype, device):
    torch.library.opcheck(
        torch.ops.curvext.outer_gram.default, sample_inputs(3, 4, 2, 5, 6, 3, dtype, device)
    )


def test_it_compiles_to_the_same_values():
    inputs = sample_inputs(3, 4, 2, 5, 6, 3, torch.float32)
    compiled = torch.compile(lambda *x: outer_gram(*x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), outer_gram(*inputs) + 1)


def test_a_gradient_is_refused_by_name():
    a, g, a2, g2 = sample_inputs(2, 2, 3, 3, 3, 1, torch.float64)
    with pytest.raises(RuntimeError, match="outer_gram: has no gradient with respect to a, g, a2"):
        outer_gram(a, g, a2.requires_grad_(), g2).sum().backward()


A, G, A2, G2 = (
    torch.zeros(2, 3, 4),
    torch.zeros(2, 3, 5),
    torch.zeros(6, 7, 4),
    torch.zeros(6, 7, 5),
)
BAD_CALLS = [
    ((A[0], G, A2, G2), ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
    ((A, G[None], A2, G2), ValueError, r"g has shape \[1, 2, 3, 5\], expected \[2, 3, O\]"),
    ((A, G[:, :2], A2, G2), ValueError, r"g has shape \[2, 2, 5\], expected \[2, 3, O\]"),
    ((A, G, G2, G2), ValueError, r"a2 has shape \[6, 7, 5\], expected \[N', S', 4\]"),
    ((A, G, A2, A2), ValueError, r"g2 has shape \[6, 7, 4\], expected \[6, 7, 5\]"),
    ((A, G, A2, G2[1:]), ValueError, r"g2 has shape \[5, 7, 5\], expected \[6, 7, 5\]"),
    ((A.int(), G, A2, G2), TypeError, "a has dtype"),
    ((A, G, A2, G2.double()), TypeError, "expected the same dtype"),
]


@pytest.mark.parametrize("inputs, error, message", BAD_CALLS)
@pytest.mark.parametrize("on_reference", [False, True])
def test_bad_arguments_are_named(inputs, error, message, on_reference):
    with (
        kernels.use_reference(on_reference),
        pytest.raises(error, match="outer_gram: .*" + message),
    ):
        outer_gram(*inputs)
