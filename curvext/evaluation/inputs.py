"""Batches as a model takes them: their forms, their checks, and writes to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from curvext import data
from curvext.evaluation.outputs import tensor_of
from curvext.fingerprints import strided_parts
from curvext.finite import is_finite
from curvext.torch_internals.tensors import version_of


class Call:
    """Calls a model by convention, and finds a list of single samples, whose features would pass for samples.

    A floating input [n] is n samples of one number, or the n features of one sample. If the output has another
    number of rows, or the model does not take the first row alone, dimension 0 is not that of samples.
    """

    def __init__(self) -> None:
        self._rows_are_samples = False

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The output; raises a ValueError unless the rows of inputs with one dimension are samples."""
        by_name = isinstance(batch, Mapping)
        given = {k: v for k, v in batch.items() if k != "labels"} if by_name else _pair(batch)[0]
        returned = _called_by_name(model, given, batch) if by_name else model(given)
        output = tensor_of(returned)
        several = output.ndim > 0 and len(output) > 1
        if several and not self._rows_are_samples and _has_one_dimension(given):
            with suppress(RuntimeError, ValueError, IndexError):  # a layer of another size
                first = data.mapped(given, lambda t: t[:1])
                alone = tensor_of(model(**first) if by_name else model(first))
                shapes = {t.shape for t in data.tensors(given)}
                self._rows_are_samples = shapes == {output.shape[:1]} and len(alone) == 1
            if not self._rows_are_samples:
                found = [list(t.shape) for t in data.tensors(given)]
                raise ValueError(
                    f"data: inputs {found} have one dimension, which is not that of samples: the output is "
                    f"{list(output.shape)}. Of a list of single samples make batches: DataLoader(data, "
                    "batch_size=...); if rows of the output are samples all the same, "
                    "forward=lambda model, batch: model(batch[0])"
                )
        return output


def _has_one_dimension(given: Any) -> bool:
    """Whether all tensors of some inputs have one dimension, and one holds numbers rather than indices."""
    if isinstance(given, Tensor):
        return given.ndim == 1 and given.is_floating_point()
    tensors = data.tensors(given)
    return all(t.ndim == 1 for t in tensors) and any(t.is_floating_point() for t in tensors)


def _called_by_name(model: nn.Module, given: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """What a model returns for the entries of a mapping."""
    _check_decoder(model, given)
    try:
        return model(**given)
    except TypeError as error:
        unknown = _not_taken(model, given)
        if not unknown:
            raise
        taken = ", ".join(f"{k}=batch[{k!r}]" for k in given if k not in unknown)
        label = "labels" if "labels" in batch else unknown[0]
        raise ValueError(
            f"data: the model takes no argument {', '.join(map(repr, unknown))}; leave it out of the mapping, or say "
            f"how the model is called: forward=lambda model, batch: model({taken}), "
            f"target=lambda batch: batch[{label!r}]"
        ) from error


def _not_taken(model: nn.Module, given: Mapping[str, Any]) -> list[str]:
    """The keys that are no argument of a model's forward."""
    arguments = inspect.signature(model.forward).parameters
    if any(a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments.values()):
        return []
    return [k for k in given if k not in arguments]


def _check_decoder(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Raises a ValueError for an encoder-decoder without the inputs of its decoder, which it makes from the labels."""
    decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if decodes and given.keys().isdisjoint(("decoder_input_ids", "decoder_inputs_embeds")):
        raise ValueError(
            "data: an encoder-decoder makes its decoder_input_ids from the labels, which are not handed to the model; "
            "its labels are not shifted, so loss=nn.CrossEntropyLoss() with "
            "forward=lambda model, batch: model(**batch).logits.transpose(1, 2), target=lambda batch: batch['labels']"
        )


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
        entries = len(batch) if isinstance(batch, (tuple, list)) else 0
        what = f"{entries} entries" if entries else type(batch).__name__
        inputs = "model(batch[0], batch[2])" if entries > 2 else "model(batch[0])"
        raise ValueError(
            f"data: a batch must be a pair (x, y) or a mapping with 'labels', got {what}; or say what of it is which: "
            f"forward=lambda model, batch: {inputs}, target=lambda batch: batch[1]"
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
                "out, or take data (x, y.nan_to_num(), ~y.isnan()), forward=lambda model, batch: model(batch[0]), "
                "target=lambda batch: torch.stack(batch[1:], -1) and a loss that multiplies by target[..., 1]; an "
                "attention mask may be boolean, or have torch.finfo(dtype).min in place of -inf"
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
