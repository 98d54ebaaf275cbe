"""Batches as a model takes them: their forms, their checks, and writes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvext import data
from curvext.fingerprints import strided_parts
from curvext.finite import is_finite
from curvext.torch_internals.tensors import version_of


def call(model: nn.Module, batch: Any) -> Any:
    """What a model returns for the inputs of a batch ``(x, y)``, or for a mapping without its labels."""
    if isinstance(batch, Mapping):
        return model(**{k: value for k, value in batch.items() if k != "labels"})
    return model(_pair(batch)[0])


def target_of(batch: Any) -> Any:
    """The target of a batch ``(x, y)``, or the labels of a mapping."""
    if not isinstance(batch, Mapping):
        return _pair(batch)[1]
    if "labels" not in batch:
        raise ValueError(
            f"data: a mapping needs the key 'labels' (or pass target=), got {sorted(map(str, batch))}"
        )
    return batch["labels"]


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{len(batch)} entries" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(
            f"data: a batch must be a pair (x, y) or a mapping with 'labels', got {what}; or say what of it is which: "
            "forward=lambda model, batch: model(batch[0]), target=lambda batch: batch[1]"
        )
    return batch[0], batch[1]


def is_empty(batch: Any, tensors: Sequence[Tensor], target: Callable[[Any], Any]) -> bool:
    """Whether a batch has no sample.

    Where some of its tensors have rows and some have none, its target decides: a graph without edges is a sample too.

    Args:
        batch: the batch.
        tensors: its tensors.
        target: what gives its target.
    """
    rows = [t.shape[0] for t in tensors if t.ndim > 0]
    if 0 not in rows:
        return False
    if not any(rows):
        return True
    for part in (target(batch), _first(batch)):
        counts = [t.shape[0] for t in data.tensors(part) if t.ndim > 0]
        if counts:
            return not any(counts)
    return False


def _first(batch: Any) -> Any:
    """The first part of a batch: the inputs of a pair."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(iter(values), None) if isinstance(values, Iterable) else None


def check_batch(batch: Any, device: torch.device) -> None:
    """Raises a ValueError if a tensor of a batch is on another device, or not finite."""
    for t in data.tensors(batch):
        if t.device != device:
            raise ValueError(
                f"data: a tensor is on {t.device}, the parameters on {device}; move the batch"
            )
        if (t.is_floating_point() or t.is_complex()) and not all(
            is_finite(part) for part in strided_parts([t])
        ):
            raise ValueError(
                f"data: a tensor of shape {list(t.shape)} contains nan or inf. Leave samples with missing labels "
                "out; a mask may be boolean, or have torch.finfo(dtype).min in place of -inf"
            )


class InputWrites:
    """Finds whether a forward pass writes to the tensors of a batch.

    Args:
        tensors: the tensors.
        copied: whether they are copied too, so that a write can be undone.
    """

    def __init__(self, tensors: Sequence[Tensor], copied: bool) -> None:
        self._tensors = [t for t in tensors if not t.is_inference()]
        self._versions = [version_of(t) for t in self._tensors]
        self._copies = [t.detach().clone() for t in self._tensors] if copied else []
        self._flags = [t.requires_grad for t in self._tensors]

    def put_flags_back(self) -> None:
        """Restores the requires_grad of each tensor: a model of forces calls ``x.requires_grad_()``."""
        for t, flag in zip(self._tensors, self._flags, strict=True):
            if t.requires_grad is not flag and t.is_leaf:
                t.requires_grad_(flag)

    def check(self) -> None:
        """Raises a RuntimeError if one was written to, and undoes it where there are copies."""
        written = [version_of(t) != v for t, v in zip(self._tensors, self._versions, strict=True)]
        if not any(written):
            return
        with torch.no_grad():
            for t, copy in zip(self._tensors, self._copies, strict=False):
                if not torch.equal(t, copy):
                    t.copy_(copy)
        shape = list(self._tensors[written.index(True)].shape)
        raise RuntimeError(
            f"model: the forward pass writes to its input (a tensor of shape {shape}), so the data are others at the "
            "next evaluation. Write x = x - 0.5 instead of x.sub_(0.5), or hand the model a copy: "
            "forward=lambda model, batch: model(batch[0].clone())"
        )
