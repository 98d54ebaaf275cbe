"""Each kernel beside its plain PyTorch form, that form compiled, the best rival's form, and the hardware's floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One problem of a kernel. ``benchmarks/kernels/<k>.py`` yields them as ``cases(device, dtype)``.

    Args:
        problem: its sizes in words, "N=64 S=8 I=512 O=512".
        inputs: the tensors all forms take.
        kernel: the kernel as a function of the inputs.
        plain: the same by PyTorch's own operations, which is also compiled; None where it does not fit in memory.
        exact: the same in float64, as a function of the inputs.
        flops: floating-point operations that the formula needs.
        traffic: bytes that must be read and written at least once.
        rivals: other forms by name, functions of the inputs; the best one is what counts.
        bounds: what the hardware is asked for at least, by name: another result of the same FLOPs or bytes.
        uncompilable: why the plain form is not compiled, where torch.compile's code would end the process.
    """

    problem: str
    inputs: tuple[Tensor, ...]
    kernel: Callable[..., Tensor]
    plain: Callable[..., Tensor] | None
    exact: Callable[..., Tensor]
    flops: float
    traffic: float
    rivals: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    bounds: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    uncompilable: str | None = None


def nbytes(*tensors: Tensor) -> int:
    """Bytes of some tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)
