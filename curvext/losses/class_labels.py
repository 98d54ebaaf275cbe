"""What losses of class labels share: which labels count, with which weight, and whether they fit the output."""

from __future__ import annotations

import torch
from torch import Tensor

from curvext.losses.base import check_weight


def kept_labels(
    target: Tensor, ignore_index: int, classes: int, owner: str
) -> tuple[Tensor, Tensor]:
    """The labels as int64, 0 where they are ignored, and where they are not, a mask; both like the target.

    Raises:
        ValueError: a label is no class of the output.
    """
    kept = target != ignore_index
    label = torch.where(kept, target, 0).long()  # a uint8 index would be read as a mask
    if kept.any() and not bool(((label >= 0) & (label < classes)).all()):
        raise ValueError(
            f"{owner}: target has labels {int(label.min())}..{int(label.max())}, "
            f"the output has {classes} classes"
        )
    return label, kept


def check_class_weight(weight: Tensor, classes: int, owner: str) -> None:
    """Raises a ValueError unless there is one finite weight for each class."""
    wanted = f"[{classes}], one for each class of the output"
    check_weight(weight, weight.shape == (classes,), wanted, owner, "weight")


def check_labels(output: Tensor, target: Tensor, dim: int, owner: str, hint: str = "") -> None:
    """Raises unless the target has one class index for each position of an output with classes in ``dim``.

    Args:
        hint: what to say beside a shape that does not fit.
    """
    per_position = output.shape[:dim] + output.shape[dim + 1 :]
    if target.shape == per_position:
        if target.dtype not in (torch.int64, torch.uint8):
            raise TypeError(f"{owner}: target has dtype {target.dtype}; class indices are int64")
        return
    if target.ndim == 0:
        hint = "; of a list of single samples make batches: DataLoader(data, batch_size=...)"
    raise ValueError(
        f"{owner}: output {list(output.shape)} wants a target {list(per_position)} of class indices, "
        f"got {list(target.shape)} {target.dtype}{hint}"
    )


def check_classes(
    output: Tensor, target: object, dim: int, weight: Tensor | None, owner: str
) -> None:
    """Raises unless the output has classes, the target is a tensor, and a class weight fits."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{owner}: expected a tensor as target, got {type(target).__name__}; of a list of single samples make "
            "batches: DataLoader(data, batch_size=...)"
        )
    if output.ndim < 2:
        raise ValueError(
            f"{owner}: expected an output [N, C, ...], got {list(output.shape)}; of a list of single samples make "
            "batches: DataLoader(data, batch_size=...)"
        )
    if weight is not None:
        check_class_weight(weight, output.shape[dim], owner)
