"""The tests that every kernel passes that sweeps over classes."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from bounds import assert_within, unit_roundoff
from outputs import SIZES, Inputs, OutputKernel, randn, storage_error, without
from torch import Tensor

# rows, columns, gathered tiles, and panels with a tail
LAYOUTS = [
    ((4, 10), 1),
    ((3, 70), 1),
    ((10, 4), 0),
    ((2, 7, 5), 1),
    ((3, 4, 40), -1),
    ((2, 9, 3, 15), 1),
    ((2, 65, 130), 1),
]


def certainty(z: Tensor) -> tuple[Tensor, Tensor]:
    """p and 1 - p, float64 along the last dimension, the second as a sum over the other classes."""
    p = torch.softmax(z.double(), -1)
    others = p.unsqueeze(-2) * (1 - torch.eye(z.shape[-1], dtype=p.dtype, device=z.device))
    return p, others.sum(-1)


def rounding_steps(z: Tensor, dim: int) -> float:
    """How many roundings a result can collect, in units of its magnitude.

    Exponential and its argument, the sums, a rescaling for each run of classes, and the steps of the final product.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    finite = z.double().nan_to_num(0, 0, 0)
    spread = (finite.amax(dim) - finite.amin(dim)).max().item() if z.numel() else 0.0
    # z - max is rounded once: |z - max| u
    exponential = 4 + min(spread, -math.log(torch.finfo(dtype).tiny))
    classes = z.shape[dim]
    return (
        2 * exponential + 2 * min(classes, 2048) + 4 * (min(classes, 2048) // 8 + 1) + 12
    ) * unit_roundoff(dtype)


def underflow(z: Tensor, dim: int) -> float:
    """p below the smallest normal number counts as 0."""
    return torch.finfo(torch.promote_types(z.dtype, torch.float32)).tiny * z.shape[dim]


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


class SoftmaxKernel(OutputKernel):
    """Tests of a kernel with arguments z, w and dim."""

    #: whether the result has one vector more than z has dimensions
    has_vectors: ClassVar[bool] = True

    @abstractmethod
    def inputs(
        self,
        shape: Any,
        dim: int,
        dtype: torch.dtype,
        device: str = "cpu",
        vectors: int = 2,
        scale: float = 3.0,
    ) -> Inputs:
        """The kernel's arguments for random logits of a shape."""

    def logits(self, shape: Any, dtype: torch.dtype, device: str, scale: float) -> Tensor:
        return (scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)

    def weights(self, z: Tensor, dim: int) -> Tensor:
        w = torch.rand(without(z, dim), dtype=torch.float64).add(0.5)
        return w.to(z.device, z.dtype)

    def by_position(self, result: Tensor, dim: int) -> Tensor:
        """[K, positions, classes] of a result for two-dimensional z."""
        result = result if self.has_vectors else result.unsqueeze(0)
        return result if dim == 1 else result.transpose(1, 2)

    def poison(self, inputs: Inputs, position: int, value: float) -> None:
        """Fills everything at a position of two-dimensional z."""
        for name, x in inputs.items():
            if name != "w" and isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1:
                x.select(x.dim() - 1 - inputs["dim"], position).fill_(value)

    @pytest.mark.parametrize("shape, dim", LAYOUTS)
    def test_the_class_dimension_may_stand_anywhere(self, shape, dim, dtype, device, simd):
        self.check(self.inputs(shape, dim, dtype, device))

    @pytest.mark.parametrize("classes", SIZES[1:])
    def test_every_number_of_classes_is_right(self, classes, device, simd):
        self.check(self.inputs((3, classes), 1, torch.float32, device))
        self.check(self.inputs((classes, 3), 0, torch.float64, device))
        self.check(self.inputs((classes, 35), 0, torch.float32, device))

    @pytest.mark.parametrize("inner", SIZES)
    def test_every_number_of_positions_behind_the_classes_is_right(self, inner, device, simd):
        self.check(self.inputs((2, 5, inner), 1, torch.float32, device))

    @pytest.mark.parametrize("classes", [2047, 2048, 2049])
    def test_sums_over_many_classes_keep_their_accuracy(self, classes, device):
        self.check(self.inputs((2, classes), 1, torch.float32, device, vectors=1))
        self.check(self.inputs((classes, 2), 0, torch.float32, device, vectors=1))

    def error_of_the_likeliest(self, inputs: Inputs) -> Tensor | float:
        """What the formula of the likeliest class loses beside its value."""
        return 0.0

    def check_long(self, inputs: Inputs) -> None:
        """Beside the reference in float64, as the oracles take all pairs of classes.

        Sums are formed in parts of some hundred terms; what a value loses is measured by it and by the mean of all.
        """
        exact = self.reference(
            **{k: x.double() if _is_floating(x) else x for k, x in inputs.items()}
        )
        steps = 2.0**9 * unit_roundoff(torch.promote_types(inputs["z"].dtype, torch.float32))
        # the last: the reference's own rounding
        bound = steps * (exact.abs() + exact.abs().mean()) + 2.0**-50
        bound = bound + self.error_of_the_likeliest(inputs)
        what = f"{self.name}: z {list(inputs['z'].shape)}, {inputs['z'].dtype}"
        bound = storage_error(inputs["z"], exact, bound)
        assert_within(self.kernel(**inputs), exact, bound, what)

    # on the GPU a warp holds a row, a block, a cluster of 2, 4 or 8, or none of them; an odd row begins anywhere
    @pytest.mark.parametrize("classes", [256, 1024, 2051, 4099, 8195, 32771, 65541, 270003])
    def test_rows_of_any_length_are_right(self, classes, dtype, device):
        vectors = 2 if classes < 10000 else 1
        self.check_long(self.inputs((2, classes), 1, dtype, device, vectors, scale=1.0))

    @pytest.mark.parametrize("classes", [5, 300, 4400])
    def test_rows_that_begin_anywhere_are_right(self, classes, dtype, device):
        inputs = self.inputs((3, classes), 1, dtype, device, scale=1.0)
        for begin in (0, 1, 3, 4, 7, 8):
            moved = {}
            for name, x in inputs.items():
                if _is_floating(x) and x.dim() > 1:
                    buffer = x.new_full((*x.shape[:-1], classes + 16), math.nan)
                    buffer[..., begin : begin + classes] = x
                    x = buffer[..., begin : begin + classes]
                moved[name] = x
            self.check_long(moved)
            # the vectors may begin elsewhere than the logits
            self.check_long(moved | {"z": inputs["z"]})

    @pytest.mark.parametrize("classes", [63, 64, 515])
    @pytest.mark.parametrize("inner", [3, 33])
    def test_columns_of_any_length_are_right(self, inner, classes, dtype, device):
        self.check_long(self.inputs((2, classes, inner), 1, dtype, device, scale=1.0))

    @pytest.mark.parametrize("shape, dim", [((0, 5), 1), ((0, 5), 0), ((2, 3, 0), 1)])
    def test_empty_tensors_give_empty_results(self, shape, dim, device):
        if 0 in without(torch.zeros(shape), dim):
            inputs = self.inputs(shape, dim, torch.float32, device)
            result = self.kernel(**inputs)
            assert result.shape == (2, *shape) if self.has_vectors else result.shape == shape

    @pytest.mark.parametrize("shape, dim", LAYOUTS)
    def test_slices_of_larger_buffers_are_read_in_place(self, shape, dim, device, simd):
        self.check(self.sliced(self.inputs(shape, dim, torch.float32, device)))

    def test_classes_that_are_neighbours_in_memory_are_rows_wherever_they_stand(self, device):
        inputs = self.inputs((3, 4, 10), 2, torch.float32, device)
        turned = {
            name: x.transpose(-1, -2)
            if isinstance(x, Tensor) and x.dim() >= 3 and x.shape[-3:] == (3, 4, 10)
            else x
            for name, x in inputs.items()
        }
        self.check(turned | {"dim": 1})

    def test_a_single_position_without_further_dimensions_is_right(self, device):
        self.check(self.inputs((6,), 0, torch.float64, device))

    @pytest.mark.parametrize("dim", [0, 1])
    def test_logits_of_ten_thousand_stay_finite(self, dim, dtype, device, simd):
        inputs = self.inputs((33, 34), dim, dtype, device)
        inputs["z"] = inputs["z"].sign() * 1e4
        assert self.kernel(**inputs).isfinite().all()

    @pytest.mark.parametrize("dim", [0, 1])
    @pytest.mark.parametrize("size", [17, 80])
    def test_a_certain_class_does_not_cancel(self, size, dim, device, simd):
        inputs = self.inputs((size, size), dim, torch.float32, device, scale=0.1)
        inputs["z"].diagonal().fill_(30.0)  # p of the likeliest is 1 - 1e-12: 1 in float32
        expected, _ = self.oracle(**inputs)
        error = (self.kernel(**inputs).double() - expected).abs()
        relative = self.by_position(error / expected.abs(), dim).diagonal(dim1=1, dim2=2)
        assert relative.max() < 1e-4

    @pytest.mark.parametrize("dim", [0, 1])
    @pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
    def test_masked_classes_have_probability_zero(self, lowest, dim, device, simd):
        inputs = self.inputs((20, 20), dim, torch.float32, device)
        inputs["z"].fill_diagonal_(lowest)
        inputs["z"].select(dim, 0).fill_(lowest)
        expected, _ = self.oracle(**inputs)
        torch.testing.assert_close(self.kernel(**inputs).double(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dim", [0, 1])
    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_a_position_of_weight_zero_is_exactly_zero_whatever_stands_there(
        self, poison, dim, device, simd
    ):
        inputs = self.inputs((19, 19), dim, torch.float32, device)
        clean = self.by_position(self.kernel(**inputs), dim)[:, 5].clone()
        inputs["w"][3] = 0
        self.poison(inputs, 3, poison)
        actual = self.by_position(self.kernel(**inputs), dim)
        assert (actual[:, 3] == 0).all()
        assert torch.equal(actual[:, 5], clean)

    @pytest.mark.parametrize("size", [37, 70])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("dim", [0, 1])
    def test_a_nan_or_an_infinity_shows_at_its_position_only(
        self, value, size, dim, dtype, device, simd
    ):
        inputs = self.inputs((size, size), dim, dtype, device)
        inputs["z"].select(1 - dim, 4)[7] = value
        found = self.by_position(self.kernel(**inputs).isnan(), dim)
        assert found[:, 4].any(1).all() and found.sum() == found[:, 4].sum()
        assert found[:, 4].all() or value == math.inf

    def test_weights_may_be_float32_beside_half_precision_logits(self, device):
        inputs = self.inputs((4, 9), 1, torch.bfloat16, device)
        w = inputs["w"].float() * (1 + 2.0**-8)  # between two numbers of bfloat16
        self.check(inputs | {"w": w})
        assert not torch.equal(
            self.kernel(**inputs | {"w": w}), self.kernel(**inputs | {"w": w.bfloat16()})
        )

    @pytest.mark.parametrize("shape, dim", [((65, 200), 1), ((200, 65), 0), ((65, 5), 1)])
    def test_two_calls_give_identical_bits(self, shape, dim, dtype, device):
        inputs = self.inputs(shape, dim, dtype, device)
        assert torch.equal(self.kernel(**inputs), self.kernel(**inputs))

    @pytest.mark.parametrize("shape, dim", LAYOUTS)
    def test_the_reference_agrees(self, shape, dim, dtype, device):
        self.check_reference(self.inputs(shape, dim, dtype, device))

    @pytest.mark.parametrize("shape, dim", [((3, 5), 1), ((3, 5, 4), 1)])
    def test_it_is_a_well_formed_op(self, shape, dim, dtype, device):
        inputs = self.inputs(shape, dim, dtype, device)
        torch.library.opcheck(self.op(), tuple(inputs.values()))

    def test_rows_behind_a_transposition_are_a_well_formed_op(self):
        inputs = self.inputs((3, 4, 5), 2, torch.float32)
        turned = {
            name: x.transpose(-1, -2)
            if isinstance(x, Tensor) and x.dim() >= 3 and x.shape[-3:] == (3, 4, 5)
            else x
            for name, x in inputs.items()
        }
        torch.library.opcheck(self.op(), tuple((turned | {"dim": 1}).values()))

    def test_it_compiles_to_the_same_values(self):
        self.check_compiled(self.inputs((3, 5), 1, torch.float32))

    def test_a_gradient_that_it_does_not_have_is_refused_by_name(self):
        for argument in self.fixed:
            self.check_refusal(self.inputs((3, 5), 1, torch.float64), argument)

    def test_bad_arguments_are_named(self):
        z, w = torch.zeros(2, 3), torch.zeros(2)
        calls: list[tuple[Inputs, type[Exception], str]] = [
            ({"z": torch.tensor(1.0), "dim": 0}, ValueError, "z is a scalar"),
            ({"dim": 2}, ValueError, "dim is 2"),
            ({"dim": -3}, ValueError, "dim is -3"),
            ({"w": z}, ValueError, r"w has shape \[2, 3\], expected \[2\]"),
            ({"z": z.long()}, TypeError, "z has dtype"),
            ({"w": w.double()}, TypeError, "w has dtype"),
        ]
        self.check_bad_calls(self.inputs((2, 3), 1, torch.float32), calls)


class SoftmaxProduct(SoftmaxKernel):
    """Tests of a kernel with arguments z, <vectors>, w and dim, linear in the vectors."""

    vectors: ClassVar[str] = "u"

    def inputs(self, shape, dim, dtype, device="cpu", vectors=2, scale=3.0):
        z = self.logits(shape, dtype, device, scale)
        u = randn((vectors, *shape), device, dtype)
        if scale < 1:
            u = u + 100  # a certain class, and vectors that have much in common
        return {"z": z, self.vectors: u, "w": self.weights(z, dim), "dim": dim}

    @pytest.mark.parametrize("vectors", [0, 1, 3, 4, 5, 9])
    @pytest.mark.parametrize("shape, dim", [((3, 9), 1), ((3, 90), 1), ((9, 40), 0)])
    def test_any_number_of_vectors_reads_the_same_logits(self, vectors, shape, dim, device):
        self.check(self.inputs(shape, dim, torch.float32, device, vectors=vectors))

    def test_it_is_differentiable_in_its_vectors_twice(self, device):
        inputs = self.inputs((3, 5), 1, torch.float64, device)
        product = lambda u: self.kernel(**(inputs | {self.vectors: u}))  # noqa: E731
        u = inputs[self.vectors].requires_grad_()
        assert torch.autograd.gradcheck(product, u)
        assert torch.autograd.gradgradcheck(product, u)

    def test_bad_vectors_are_named(self):
        u = torch.zeros(1, 2, 3)
        calls: list[tuple[Inputs, type[Exception], str]] = [
            ({self.vectors: u[0]}, ValueError, r" has shape \[2, 3\], expected \[K, \*z.shape\]"),
            ({self.vectors: u[:, :1]}, ValueError, r" has shape \[1, 1, 3\]"),
            ({self.vectors: u.double()}, TypeError, f"{self.vectors} has dtype"),
        ]
        self.check_bad_calls(self.inputs((2, 3), 1, torch.float32), calls)
