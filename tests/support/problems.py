"""Losses and targets for the grid, and the ways in which one set of samples is cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from models import N, make
from oracles import Oracle
from torch import Tensor, nn


class Coupling:
    """A smooth loss without closed form whose output Hessian is dense within a sample and not definite."""

    def __init__(self, reduction: str) -> None:
        self.reduction = reduction

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        z = output.flatten(1) - target.flatten(1)
        loss = z.cosh().log().sum(1) + z.sum(1).sin() + (z[:, 0] * z[:, -1])
        return loss.mean() if self.reduction == "mean" else loss.sum()


@dataclass(frozen=True)
class LossCase:
    """A loss by reduction, and targets for outputs."""

    build: Callable[..., Any]
    target: Callable[[Tensor], Tensor]


def _labels(output: Tensor) -> Tensor:
    shape = output.shape[:1] + output.shape[2:]
    return torch.randint(output.shape[1], shape).to(output.device)


def _probabilities(output: Tensor) -> Tensor:
    return (
        torch.rand(output.shape).to(output).softmax(1) * 1.3
    )  # torch does not ask for a sum of one


def _values(output: Tensor) -> Tensor:
    return torch.randn(output.shape).to(output)


def _zero_one(output: Tensor) -> Tensor:
    return torch.rand(output.shape).to(output)


def _minus_100(output: Tensor) -> Tensor:
    labels = _labels(output)
    labels.view(-1)[::3] = -100
    return labels


WEIGHT = torch.tensor([0.4, 1.7, 0.8], dtype=torch.float64)

LOSSES: dict[str, LossCase] = {
    "ce": LossCase(lambda r: nn.CrossEntropyLoss(reduction=r), _labels),
    "ce_minus_100": LossCase(lambda r: nn.CrossEntropyLoss(reduction=r), _minus_100),
    "ce_weight": LossCase(lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r), _labels),
    "ce_smooth": LossCase(
        lambda r: nn.CrossEntropyLoss(label_smoothing=0.2, reduction=r), _minus_100
    ),
    "ce_weight_ignore_smooth": LossCase(
        lambda r: nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1, reduction=r),
        _labels,
    ),
    "ce_probabilities": LossCase(lambda r: nn.CrossEntropyLoss(reduction=r), _probabilities),
    "ce_probabilities_weight_smooth": LossCase(
        lambda r: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, reduction=r), _probabilities
    ),
    "mse": LossCase(lambda r: nn.MSELoss(reduction=r), _values),
    "bce": LossCase(lambda r: nn.BCEWithLogitsLoss(reduction=r), _zero_one),
    "bce_pos_weight": LossCase(
        lambda r: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.5), reduction=r), _zero_one
    ),
    "custom": LossCase(lambda r: Coupling(r), _values),
    "smooth_l1": LossCase(lambda r: nn.SmoothL1Loss(reduction=r, beta=0.7), _values),
}


def loss_and_target(name: str, reduction: str, output: Tensor) -> tuple[Any, Tensor]:
    """The loss, in the output's dtype, and targets that fit."""
    case = LOSSES[name]
    loss = case.build(reduction)
    if isinstance(loss, nn.Module):
        loss = loss.to(output.device, output.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return loss, case.target(output.detach())


def batches(x: Any, y: Any, sizes: list[int]) -> list[Any]:
    """The samples cut into batches of these sizes, as pairs or mappings with "labels"."""
    start, cut = 0, []
    for size in sizes:
        here = slice(start, start + size)
        if isinstance(x, Mapping):
            cut.append({**{key: value[here] for key, value in x.items()}, "labels": y[here]})
        else:
            cut.append((x[here], y[here]))
        start += size
    assert start == len(y), f"sizes {sizes} do not cover {len(y)} samples"
    return cut


def one_batch(x: Any, y: Any) -> Any:
    """All samples as one batch."""
    return batches(x, y, [len(y)])[0]


def vectors(size: int, count: int, like: Tensor) -> Tensor:
    """Random vectors [size, count] in the dtype and on the device of ``like``."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, count, generator=generator, dtype=torch.float64).to(like)


@dataclass(frozen=True)
class Posed:
    """One problem of the grid: what the library is given, and the oracle's view of it."""

    model: nn.Module
    loss: Any
    x: Any
    y: Tensor
    oracle: Any

    @property
    def data(self) -> Any:
        """All samples as one batch."""
        return one_batch(self.x, self.y)

    def cut(self, *sizes: int) -> list[Any]:
        """All samples in batches of these sizes."""
        return batches(self.x, self.y, list(sizes))

    def vectors(self, count: int = 2) -> Tensor:
        """Random vectors [P, count]."""
        return vectors(self.oracle.size, count, self.oracle.output)


def pose(
    name: str,
    loss: str = "ce",
    reduction: str = "mean",
    device: Any = "cpu",
    dtype: torch.dtype = torch.float64,
    samples: int = N,
) -> Posed:
    """The network ``name`` with the loss ``loss``."""
    model, x = make(name, device, dtype, samples)
    oracle = Oracle(model, None, x, None)  # its output says what targets fit
    oracle.loss, oracle.y = loss_and_target(loss, reduction, oracle.output)
    return Posed(model, oracle.loss, x, oracle.y, oracle)


def pose_language_model(device: Any = "cpu", samples: int = 3, **options: Any) -> Posed:
    """The tiny GPT-2 with ``CausalLMLoss``, some labels ignored."""
    from curvext import CausalLMLoss

    model, x = make("gpt2", device, torch.float64, samples)
    y = x["input_ids"].clone()
    ignored = options.get("ignore_index", -100)
    y[0, 3:] = ignored
    y[2] = ignored
    loss = CausalLMLoss(**options)
    return Posed(model, loss, x, y, Oracle(model, loss, x, y))
