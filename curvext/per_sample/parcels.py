"""Records as they are sent between processes: tensors, and a label that describes how to reassemble them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvext.gradients.structured import StructuredGradient
from curvext.per_sample.recorded import Records
from curvext.space import ParameterSpace


@dataclass(frozen=True)
class Placed:
    """An arrangement by strides, without the graph that it was found in.

    Args:
        parameter: the shape of the parameter.
        size, stride, offset: of the view in a contiguous tensor of that shape.
    """

    parameter: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, arrange: Any, parameter: torch.Size) -> Placed:
        """The same arrangement."""
        view = arrange(torch.empty(parameter, device="meta"))
        return cls(tuple(parameter), tuple(view.shape), view.stride(), view.storage_offset())

    def __call__(self, x: Tensor) -> Tensor:
        """A contiguous tensor in the parameter's shape as a view in the shape of the use."""
        return x.as_strided(self.size, self.stride, x.storage_offset() + self.offset)


@dataclass(frozen=True)
class _Slot:
    """A placeholder for a tensor."""

    number: int


@dataclass(frozen=True)
class _Made:
    """An object by its class and its attributes."""

    kind: type
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Label:
    """The structure of some records, with the shapes and dtypes of their tensors."""

    records: Any
    shapes: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)

    @property
    def sizes(self) -> list[Tensor]:
        """The tensors without contents, on the device "meta"."""
        return [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in self.shapes]


@dataclass(frozen=True)
class Parcel:
    """The tensors and the label that are sent for some records."""

    label: Label
    tensors: list[Tensor]


def packed(several: Sequence[Records]) -> Parcel:
    """The records of some batches, by reference where their tensors are contiguous.

    Raises:
        TypeError: a use holds something that cannot be sent.
    """
    tensors: list[Tensor] = []

    def described(item: Any) -> Any:
        if isinstance(item, Tensor):
            tensors.append(item.detach().contiguous())
            return _Slot(len(tensors) - 1)
        if isinstance(item, StructuredGradient):
            return _Made(type(item), {name: described(value) for name, value in vars(item).items()})
        if type(item) in (list, tuple):
            return type(item)(described(value) for value in item)
        if item is None or isinstance(item, (bool, int, float, str, torch.Size, torch.dtype)):
            return item
        raise TypeError(
            f"process_group: a per-sample gradient holds a {type(item).__name__}, which no rule sends"
        )

    records = [
        {
            "samples": r.samples,
            "_dtype": r._dtype,
            "_uses": [
                (p, Placed.of(arrange, r._parameters[p].shape), described(use))
                for p, arrange, use in r._uses
            ],
            "_rows": {p: described(rows) for p, rows in r._rows.items()},
        }
        for r in several
    ]
    return Parcel(Label(records, [(t.shape, t.dtype) for t in tensors]), tensors)


def unpacked(parcel: Parcel, space: ParameterSpace) -> list[Records]:
    """Rebuilds the records for this process's replica of the parameters."""
    tensors = [t.to(space.device) for t in parcel.tensors]

    def made(item: Any) -> Any:
        if isinstance(item, _Slot):
            return tensors[item.number]
        if isinstance(item, _Made):
            use: Any = object.__new__(item.kind)
            vars(use).update({name: made(value) for name, value in item.attributes.items()})
            return use
        if type(item) in (list, tuple):
            return type(item)(made(value) for value in item)
        if type(item) is dict:
            return {key: made(value) for key, value in item.items()}
        return item

    found = []
    for state in parcel.label.records:
        records = Records(state["samples"], space)
        vars(records).update(made(state))
        found.append(records)
    return found
