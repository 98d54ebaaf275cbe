"""What the tests of all kernels of the output Hessian share; each kernel's file gives inputs and an oracle.

A kernel that sweeps over classes derives from ``SoftmaxKernel``, one that acts on each output alone from
``ElementKernel``, one that draws from ``Sampled`` too. Inputs are a dict of named arguments in the kernel's order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from bounds import assert_within, slice_of_larger, unit_roundoff
from torch import Tensor

from curvext import kernels, reference

Inputs = dict[str, Any]
SIZES = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]


def randn(shape: Any, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def without(z: Tensor, dim: int) -> list[int]:
    """The shape of z without its class dimension."""
    shape = list(z.shape)
    del shape[dim]
    return shape


def storage_error(z: Tensor, expected: Tensor, bound: Tensor) -> Tensor:
    """The bound, and the rounding to the dtype of z where that is narrower than the accumulation."""
    if z.dtype in (torch.float32, torch.float64):
        return bound
    tiny = torch.finfo(z.dtype).smallest_normal * 2**-7
    return bound + unit_roundoff(z.dtype) * (expected.abs() + bound) + tiny


class OutputKernel(ABC):
    """What both families share: a name, the kernel and its reference, inputs and an oracle."""

    name: ClassVar[str]
    #: arguments that can never be differentiated, beside the vectors
    fixed: ClassVar[tuple[str, ...]] = ("z", "w")
    #: bad calls that only this kernel has: changes of arguments, error, message
    bad_calls: ClassVar[list[tuple[Inputs, type[Exception], str]]] = []

    def kernel(self, **inputs: Any) -> Tensor:
        return getattr(kernels, self.name)(**inputs)

    def reference(self, **inputs: Any) -> Tensor:
        return getattr(reference, self.name)(**inputs)

    def op(self) -> Any:
        return getattr(torch.ops.curvext, self.name).default

    @abstractmethod
    def oracle(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """The result in float64, and its largest rounding error."""

    def check(self, inputs: Inputs) -> None:
        expected, bound = self.oracle(**inputs)
        actual = self.kernel(**inputs)
        z = inputs["z"]
        assert actual.dtype == z.dtype
        what = f"{self.name}: z {list(z.shape)}, dim {inputs.get('dim')}, {z.dtype}"
        assert_within(actual, expected, storage_error(z, expected, bound), what)

    def sliced(self, inputs: Inputs) -> Inputs:
        """The floating inputs as slices of larger buffers."""
        return {
            name: slice_of_larger(x) if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in inputs.items()
        }

    def check_reference(self, inputs: Inputs) -> None:
        expected, bound = self.oracle(**inputs)
        bound = storage_error(inputs["z"], expected, bound)
        assert_within(self.reference(**inputs), expected, bound, "reference")
        with kernels.use_reference():
            assert torch.equal(self.kernel(**inputs), self.reference(**inputs))

    def check_compiled(self, inputs: Inputs) -> None:
        torch.compiler.reset()  # each test class is another program
        compiled = torch.compile(
            lambda **x: self.kernel(**x) + 1, backend="aot_eager", fullgraph=True
        )
        assert torch.equal(compiled(**inputs), self.kernel(**inputs) + 1)

    def check_refusal(self, inputs: Inputs, argument: str) -> None:
        inputs[argument].requires_grad_()
        with pytest.raises(RuntimeError, match=f"{self.name}: has (no|a) gradient with respect to"):
            self.kernel(**inputs).sum().backward()

    def check_bad_calls(
        self, inputs: Inputs, calls: list[tuple[Inputs, type[Exception], str]]
    ) -> None:
        for on_reference in (False, True):
            for change, error, message in [*calls, *self.bad_calls]:
                with (
                    kernels.use_reference(on_reference),
                    pytest.raises(error, match=f"{self.name}: .*{message}"),
                ):
                    self.kernel(**(inputs | change))
