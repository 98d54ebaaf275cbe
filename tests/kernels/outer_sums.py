"""What the tests of all kernels of outer products share; each kernel's file gives sizes, an oracle and a bound.

Inputs are tensors in the kernel's order, made from the sizes of its letters. A class names its own cases in ``shapes``
and ``pieces`` (``conftest.py`` makes parameters of them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor
from windows import IMAGES, windows_of
from workspaces import WORKSPACES, workspace

from curvext import kernels, reference

Sizes = tuple[int, ...]
#: arguments, error, message
BadCall = tuple[tuple[Tensor, ...], type[Exception], str]

A, G = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 5)
#: calls with a and g that do not fit each other
BAD_PAIRS: list[BadCall] = [
    ((A[0], G), ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
    ((A, G[0]), ValueError, r"g has shape \[2, 3, 5\], expected \[V, N, S, O\]"),
    ((A, G[:, :, :2]), ValueError, r"g has shape \[1, 2, 2, 5\], expected \[V, 2, 3, O\]"),
    ((A, G[:, :1]), ValueError, r"g has shape \[1, 1, 3, 5\], expected \[V, 2, 3, O\]"),
    ((A.int(), G), TypeError, "a has dtype"),
    ((A, G.double()), TypeError, "expected the same dtype"),
]


class OuterKernel(ABC):
    """Tests of a kernel whose arguments are tensors alone, and whose result is a sum in the dtype of sums."""

    name: ClassVar[str]
    #: a small size for each letter, in the order of :meth:`shapes_of`
    sizes: ClassVar[dict[str, int]]
    #: cases that every kind of test runs: one for each way that the kernel takes
    shapes: ClassVar[list[Sizes]]
    #: cases that are cut into pieces by the kernel's own workspace
    pieces: ClassVar[list[Sizes]]
    #: many positions of one sample, in half precision
    long_sample: ClassVar[Sizes]
    #: the arguments that its refusal of a gradient names
    refused: ClassVar[str]
    bad_calls: ClassVar[list[BadCall]]

    @abstractmethod
    def shapes_of(self, *sizes: int) -> list[Sizes]:
        """The shapes of the arguments."""

    @abstractmethod
    def oracle(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The result in float64, and the same of absolute values, which every rounding error is measured by."""

    @abstractmethod
    def terms(self, *inputs: Tensor) -> int:
        """How many roundings an entry of the result may suffer, in units of the magnitude."""

    # ------------------------------------------------------------------ how a call is made and judged

    def kernel(self, *inputs: Tensor) -> Tensor:
        return getattr(kernels, self.name)(*inputs)

    def reference(self, *inputs: Tensor) -> Tensor:
        return getattr(reference, self.name)(*inputs)

    def inputs(self, sizes: Any, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        shapes = self.shapes_of(*sizes)
        return [torch.randn(s, dtype=torch.float64).to(device, dtype) for s in shapes]

    def roundoff(self, *inputs: Tensor) -> float:
        return unit_roundoff(torch.promote_types(inputs[0].dtype, torch.float32))

    def bounded(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The result in float64, and its largest rounding error."""
        expected, magnitude = self.oracle(*inputs)
        return expected, self.terms(*inputs) * 1.01 * self.roundoff(*inputs) * magnitude

    def has_its_structure(self, actual: Tensor) -> bool:
        """What holds of the result to the last bit."""
        return True

    def check(self, *inputs: Tensor, workspaces: tuple[int, ...] = WORKSPACES) -> None:
        expected, bound = self.bounded(*inputs)
        what = ", ".join(str(list(x.shape)) for x in inputs)
        for size in workspaces:
            with workspace(size):
                actual = self.kernel(*inputs)
            assert actual.dtype == torch.promote_types(inputs[0].dtype, torch.float32)
            assert self.has_its_structure(actual)
            assert_within(actual, expected, bound, f"{self.name}: {what}, workspace {size}")

    # ------------------------------------------------------------------ tests

    def test_it_is_right_for_every_dtype(self, shape, dtype, device, simd):
        self.check(*self.inputs(shape, dtype, device))

    @pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 129])
    def test_every_axis_may_have_any_size(self, axis, size, device):
        sizes = self.sizes | {axis: size}
        self.check(*self.inputs(sizes.values(), torch.float32, device))

    def test_several_pieces_agree_with_one(self, piece, device):
        self.check(*self.inputs(piece, torch.float32, device), workspaces=(0,))

    def test_many_terms_of_half_precision_are_summed_in_pieces(self, device):
        inputs = self.inputs(self.long_sample, torch.bfloat16, device)
        self.check(*inputs, workspaces=(0,))

    def test_slices_of_larger_buffers_are_read_in_place(self, shape, dtype, device, simd):
        self.check(*map(slice_of_larger, self.inputs(shape, dtype, device)))

    def test_two_calls_give_identical_bits(self, shape, dtype, device):
        inputs = self.inputs(shape, dtype, device)
        assert torch.equal(self.kernel(*inputs), self.kernel(*inputs))

    def test_the_reference_agrees(self, shape, dtype, device):
        inputs = self.inputs(shape, dtype, device)
        actual = self.reference(*inputs)
        assert self.has_its_structure(actual)
        assert_within(actual, *self.bounded(*inputs), f"{self.name}: reference")
        with kernels.use_reference():
            assert torch.equal(self.kernel(*inputs), actual)

    def test_it_is_a_well_formed_op(self, dtype, device):
        op = getattr(torch.ops.curvext, self.name).default
        torch.library.opcheck(op, tuple(self.inputs(self.sizes.values(), dtype, device)))

    def test_it_compiles_to_the_same_values(self):
        torch.compiler.reset()  # each test class is another program
        inputs = self.inputs(self.sizes.values(), torch.float32)
        compiled = torch.compile(
            lambda *x: self.kernel(*x) + 1, backend="aot_eager", fullgraph=True
        )
        assert torch.equal(compiled(*inputs), self.kernel(*inputs) + 1)

    def test_a_gradient_is_refused_by_name(self):
        for at in range(len(self.inputs(self.sizes.values(), torch.float64))):
            inputs = self.inputs(self.sizes.values(), torch.float64)
            inputs[at].requires_grad_()
            message = f"{self.name}: has no gradient with respect to {self.refused}"
            with pytest.raises(RuntimeError, match=message):
                self.kernel(*inputs).sum().backward()

    @pytest.mark.parametrize("on_reference", [False, True])
    def test_bad_arguments_are_named(self, on_reference):
        for inputs, error, message in self.bad_calls:
            with (
                kernels.use_reference(on_reference),
                pytest.raises(error, match=f"{self.name}: .*({message})"),
            ):
                self.kernel(*inputs)


class WindowedKernel(OuterKernel):
    """Tests of a kernel of a and g that takes windows of images for a."""

    sizes: ClassVar[dict[str, int]] = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7}
    long_sample = (1, 1, 30000, 50, 30)
    refused = "a or g"
    bad_calls = BAD_PAIRS

    def shapes_of(self, V, N, S, I, O):
        return [(N, S, I), (V, N, S, O)]

    @pytest.mark.parametrize("image, channels, window, stride", IMAGES)
    def test_windows_of_an_image_are_taken_as_if_written_out(
        self, image, channels, window, stride, dtype, device, simd
    ):
        windows, a, g = windows_of(image, channels, window, stride, dtype, device)
        expected, bound = self.bounded(a, g)
        for there in (g, g.contiguous()):
            assert_within(self.kernel(windows, there), expected, bound, f"{image}")
        with kernels.use_reference():
            assert_within(self.kernel(windows, g), expected, bound, "reference")

    def test_windows_that_do_not_fit_g_are_refused(self, device):
        a = torch.zeros(2, 3, 4, 1, 5, device=device)
        g = torch.zeros(1, 2, 11, 6, device=device)
        for on_reference in (False, True):
            message = rf"{self.name}: g has shape .*12, O\] beside windows"
            with (
                kernels.use_reference(on_reference),
                pytest.raises(ValueError, match=message),
            ):
                self.kernel(a, g)

    def test_transposed_and_expanded_inputs_are_right(self, device):
        a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
        g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
        self.check(a, g)
        self.check(a[:, :1], g[:, :, :1])

    def test_half_precision_products_are_accumulated_in_float32(self, device):
        a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
        assert self.kernel(a, a[None]).item() == 4096.0**2

    def test_squares_of_half_precision_inputs_do_not_overflow(self, device):
        a = torch.full((1, 1, 1), 3000.0, dtype=torch.float16, device=device)
        self.check(a, a[None], workspaces=(0,))


class ColumnsKernel(OuterKernel):
    """Tests of a kernel of a, g and K columns, which may have the dtype of a or that of the result."""

    sizes: ClassVar[dict[str, int]] = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7, "K": 3}
    # position by position, and with the gradients formed
    shapes: ClassVar[list[Sizes]] = [
        (1, 5, 1, 37, 29, 1),
        (3, 4, 1, 37, 29, 3),
        (2, 3, 4, 37, 29, 2),
        (1, 5, 33, 5, 7, 4),
        (2, 3, 17, 9, 6, 5),
    ]
    pieces: ClassVar[list[Sizes]] = [
        (2, 300, 8, 30, 1030, 1),
        (1, 2, 1500, 17, 1025, 1),
        (1, 900, 4, 300, 70, 8),
        (1, 3, 9, 9000, 40, 3),
    ]
    long_sample = (1, 1, 30000, 50, 30, 3)

    @abstractmethod
    def columns(self, V: int, N: int, S: int, I: int, O: int, K: int) -> Sizes:
        """The shape of the columns, K first."""

    def shapes_of(self, V, N, S, I, O, K):
        return [(N, S, I), (V, N, S, O), self.columns(V, N, S, I, O, K)]

    def test_transposed_and_expanded_inputs_are_right(self, device):
        a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
        g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
        K, rows, row = self.columns(2, 4, 3, 9, 7, 5)
        columns = torch.randn(K, row, rows, device=device).mT
        self.check(a, g, columns)
        self.check(a, g, columns[:1])

    def test_columns_in_the_dtype_of_the_result_are_taken_as_they_are(self, shape, device):
        a, g, _ = self.inputs(shape, torch.bfloat16, device)
        self.check(a, g, torch.randn(self.columns(*shape), device=device))

    def test_half_precision_products_are_accumulated_in_float32(self, device):
        a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
        columns = torch.ones(self.columns(1, 1, 4096, 1, 1, 5), dtype=a.dtype, device=device)
        assert self.kernel(a, a[None], columns[:1]).item() == 4096.0
        assert self.kernel(a, a[None], columns).eq(4096.0).all()
