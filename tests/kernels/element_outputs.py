"""The tests that every kernel passes that acts on each output alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import pytest
import torch
from outputs import SIZES, Inputs, OutputKernel, randn
from torch import Tensor


class ElementKernel(OutputKernel):
    """Tests of a kernel with arguments z and w of one shape."""

    @abstractmethod
    def inputs(
        self, shape: Any, dtype: torch.dtype, device: str = "cpu", vectors: int = 2
    ) -> Inputs:
        """The kernel's arguments for random outputs of a shape."""

    def weights(self, z: Tensor) -> Tensor:
        return torch.rand(z.shape, dtype=torch.float64).add(0.5).to(z.device, z.dtype)

    @pytest.mark.parametrize("shape", [(5, 7), (3, 4, 30), (2, 600), (9,), ()])
    def test_it_is_right_for_every_dtype(self, shape, dtype, device, simd):
        self.check(self.inputs(shape, dtype, device))

    @pytest.mark.parametrize("size", [*SIZES, 255, 256, 257, 513])
    def test_every_size_is_right(self, size, device, simd):
        self.check(self.inputs((size,), torch.float64, device))
        self.check(self.inputs((3, size), torch.float32, device))

    def test_slices_of_larger_buffers_and_transpositions_are_right(self, dtype, device):
        inputs = self.inputs((5, 7), dtype, device)
        self.check(self.sliced(inputs))
        turned = {
            name: x.mT.contiguous().mT if isinstance(x, Tensor) else x for name, x in inputs.items()
        }
        self.check(turned)

    def test_one_weight_may_be_expanded(self, dtype, device):
        inputs = self.inputs((5, 7), dtype, device)
        for w in (inputs["w"][:1, :1], inputs["w"][:1], inputs["w"][:, :1]):
            self.check(inputs | {"w": w.expand(5, 7)})

    def test_weights_may_be_float32_beside_half_precision_outputs(self, device):
        inputs = self.inputs((4, 9), torch.bfloat16, device)
        w = inputs["w"].float() * (1 + 2.0**-8)  # between two numbers of bfloat16
        self.check(inputs | {"w": w})
        assert not torch.equal(
            self.kernel(**inputs | {"w": w}), self.kernel(**inputs | {"w": w.bfloat16()})
        )

    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_an_output_of_weight_zero_is_exactly_zero_whatever_stands_there(
        self, poison, device, simd
    ):
        inputs = self.inputs((40,), torch.float32, device)
        clean = self.kernel(**inputs)[..., 5].clone()
        inputs["w"][3] = 0
        for name, x in inputs.items():
            if name != "w" and isinstance(x, Tensor):
                x[..., 3] = poison
        actual = self.kernel(**inputs)
        assert (actual[..., 3] == 0).all()
        assert torch.equal(actual[..., 5], clean)

    def test_two_calls_give_identical_bits(self, dtype, device):
        inputs = self.inputs((65, 700), dtype, device)
        assert torch.equal(self.kernel(**inputs), self.kernel(**inputs))

    def test_the_reference_agrees(self, dtype, device):
        self.check_reference(self.inputs((5, 70), dtype, device))

    def test_it_is_a_well_formed_op(self, dtype, device):
        torch.library.opcheck(self.op(), tuple(self.inputs((3, 5), dtype, device).values()))

    def test_it_compiles_to_the_same_values(self):
        self.check_compiled(self.inputs((3, 5), torch.float32))

    def test_a_gradient_that_it_does_not_have_is_refused_by_name(self):
        for argument in self.fixed:
            self.check_refusal(self.inputs((3, 5), torch.float64), argument)

    def test_bad_arguments_are_named(self):
        z = torch.zeros(2, 3)
        calls: list[tuple[Inputs, type[Exception], str]] = [
            ({"w": z[0]}, ValueError, r"w has shape \[3\], expected \[2, 3\]"),
            ({"z": z.long()}, TypeError, "z has dtype"),
            ({"w": z.double()}, TypeError, "w has dtype"),
        ]
        self.check_bad_calls(self.inputs((2, 3), torch.float32), calls)


class ElementProduct(ElementKernel):
    """Tests of a kernel with arguments z, u and w, linear in u."""

    def inputs(self, shape, dtype, device="cpu", vectors=2):
        z = 3 * randn(shape, device, dtype)
        return {"z": z, "u": randn((vectors, *shape), device, dtype), "w": self.weights(z)}

    @pytest.mark.parametrize("vectors", [0, 1, 5])
    def test_any_number_of_vectors_is_right(self, vectors, device):
        self.check(self.inputs((3, 9), torch.float32, device, vectors=vectors))

    def test_it_is_differentiable_in_its_vectors_twice(self, device):
        inputs = self.inputs((3, 5), torch.float64, device)
        product = lambda u: self.kernel(**(inputs | {"u": u}))  # noqa: E731
        assert torch.autograd.gradcheck(product, inputs["u"].requires_grad_())
        assert torch.autograd.gradgradcheck(product, inputs["u"])

    def test_a_nan_reaches_only_its_output(self, device, simd):
        inputs = self.inputs((50,), torch.float32, device)
        inputs["u"][0, 7] = math.nan
        found = self.kernel(**inputs).isnan()
        assert found[0, 7] and found.sum() == 1

    def test_bad_vectors_are_named(self):
        u = torch.zeros(1, 2, 3)
        calls: list[tuple[Inputs, type[Exception], str]] = [
            ({"u": u[0]}, ValueError, r"u has shape \[2, 3\], expected \[K, \*z.shape\]"),
            ({"u": u.double()}, TypeError, "u has dtype"),
        ]
        self.check_bad_calls(self.inputs((2, 3), torch.float32), calls)
