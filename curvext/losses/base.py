"""What a loss means to curvature: residual and output Hessian of one batch, in output space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

_NO_POSITIONS = (
    "per='token': this loss has no output positions; it is defined for nn.CrossEntropyLoss and "
    "curvext.CausalLMLoss. Use per='sample'"
)


class LossPoint(ABC):
    """A loss at one batch of outputs f and targets y, as the unnormalised sum ℓ = Σ_n ℓ_n.

    Everything here lives in output space; no factor 1/N is inside. ``denominator`` is what this
    batch adds to the divisor of the risk, so that L = Σ_b value_b / Σ_b denominator_b for the
    reduction "mean" and L = Σ_b value_b for "sum".
    """

    #: ℓ, a scalar without graph
    value: Tensor
    #: this batch's share of the divisor of a "mean"
    denominator: float
    #: ∂ℓ/∂f, in the shape and dtype of the output
    residual: Tensor

    @abstractmethod
    def hessian_mm(self, u: Tensor) -> Tensor:
        """H_ℓ u for u ``[K, *output.shape]``, same shape and dtype."""

    def position_sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` (in output shape) over the classes of each position, kept as size 1.

        Only classification losses have positions; others raise.
        """
        raise ValueError(_NO_POSITIONS)

    def residual_by_position(self) -> Iterator[Tensor]:
        """The residual split by output position: each has one position per sample, zeros elsewhere."""
        raise ValueError(_NO_POSITIONS)

    @property
    def positions(self) -> int:
        """The number of positions that are not ignored (classification losses only)."""
        raise ValueError(_NO_POSITIONS)


class OutputLoss(ABC):
    """A loss function ℓ(f, y): checks its arguments and gives the :class:`LossPoint` of a batch."""

    #: "mean" or "sum"
    reduction: str
    #: why −log p = ℓ does not hold for any p, or None where it does
    no_likelihood: str | None = None

    @abstractmethod
    def at(self, output: Tensor, target: Tensor) -> LossPoint:
        """The loss at ``output`` (detached, with the batch first) and ``target``.

        Raises:
            TypeError, ValueError: the two do not fit each other or this loss.
        """


def check_reduction(reduction: object, owner: str) -> str:
    """``reduction`` if it is "mean" or "sum".

    Raises:
        ValueError: it is anything else: then the loss is no empirical risk.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"loss: {owner} has reduction={reduction!r}; expected 'mean' or 'sum' "
            "(as an attribute of the loss or as the argument reduction=)"
        )
    return str(reduction)


def check_same_shape(output: Tensor, target: Tensor, owner: str) -> None:
    """Raises a ValueError unless output and target have one shape: broadcasting would pair wrong samples."""
    if output.shape != target.shape:
        raise ValueError(
            f"{owner}: target has shape {list(target.shape)}, the output {list(output.shape)}; they must be equal"
        )


def check_real(target: Tensor, owner: str) -> None:
    """Raises a TypeError unless the target is floating point."""
    if not target.is_floating_point():
        raise TypeError(f"{owner}: target has dtype {target.dtype}; a floating dtype is needed")
