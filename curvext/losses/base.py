"""What a loss means to curvature: residual and output Hessian of one batch, in output space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

#: the largest output of one datum whose H_ℓ is formed when there is no closed form
DENSE_OUTPUTS = 2048

_NO_POSITIONS = (
    "per='token': this loss has no output positions; it is defined for nn.CrossEntropyLoss and "
    "curvext.CausalLMLoss. Use per='sample'"
)


#: (f of c positions [c, C], u [K, c, C], which positions) → H_ℓ u [K, c, C]
RowCurvature = Callable[[Tensor, Tensor, slice], Tensor]


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

    @property
    def residual_by_sample(self) -> Tensor:
        """The residual, each row that of one sample's ℓ_n; a loss that couples samples has none and raises."""
        return self.residual

    @abstractmethod
    def hessian_mm(self, u: Tensor) -> Tensor:
        """H_ℓ u for u ``[K, *output.shape]``, same shape and dtype."""

    def row_curvature(self) -> RowCurvature:
        """H_ℓ of some output positions from their outputs alone; holds nothing of the size of the output.

        Raises:
            ValueError: this loss, or this order of dimensions, has none.
        """
        raise ValueError(
            "chunk_outputs: needs nn.CrossEntropyLoss or curvext.CausalLMLoss with the classes in the last "
            "dimension of the output; leave chunk_outputs=None"
        )

    def root_columns(self) -> Iterator[tuple[Tensor, float]]:
        """Columns s_k of the output shape with signs ±1 such that H_ℓ = Σ_k ± s_k s_kᵀ for each datum.

        The general way: the blocks of H_ℓ, C×C for a datum of C outputs, and their eigenvectors.
        Closed forms override it.
        """
        samples, outputs = len(self.residual), self.residual[0].numel()
        if outputs > DENSE_OUTPUTS:
            raise ValueError(
                f"this loss has no closed-form root, and its output Hessian of {outputs} outputs per sample "
                f"is over the limit of {DENSE_OUTPUTS} for an eigendecomposition"
            )
        eye = torch.eye(outputs, dtype=self.residual.dtype, device=self.residual.device)
        every = eye.view(outputs, 1, *self.residual.shape[1:]).expand(
            -1, samples, *self.residual.shape[1:]
        )
        products = self.hessian_mm(every.contiguous())
        blocks = products.reshape(outputs, samples, outputs).movedim(0, 2)  # [N, C, C]
        values, vectors = torch.linalg.eigh(blocks.double())
        for k in range(outputs):
            for sign in (1.0, -1.0):
                size = (sign * values[:, k]).clamp(min=0).sqrt()
                if bool((size > 0).any()):
                    column = (vectors[:, :, k] * size.unsqueeze(1)).to(self.residual.dtype)
                    yield column.view_as(self.residual), sign

    def fisher_mm(self, u: Tensor) -> Tensor:
        """Φ u for u ``[K, *output.shape]``, with Φ = E[s sᵀ] of :meth:`sampled`, so that F = Jᵀ Φ J; mostly H_ℓ."""
        return self.hessian_mm(u)

    def fisher_root_columns(self) -> Iterator[tuple[Tensor, float]]:
        """The columns of :meth:`root_columns`, for Φ."""
        return self.root_columns()

    def sampled(self, seed: int, draw: int, first: int) -> Tensor:
        """s = ∂/∂f (−log p(ŷ|f)) with ŷ drawn from the model, in output shape: E[s sᵀ] = Φ.

        Args:
            seed: of the labels.
            draw: number of the draw for each datum.
            first: index of the batch's first datum; labels depend on (seed, draw, datum, position) alone.
        """
        raise ValueError("this loss defines no distribution to draw labels from")

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
    #: whether F = G: f are natural parameters of the distribution whose −log p is ℓ
    fisher_is_ggn: bool = True
    #: whether residuals at labels of the network's own have the second moment that F is made of, unweighted, unsmoothed
    own_labels_give_fisher: bool = False

    def own_labels_ratio(self, per_sample: float) -> float | None:
        """c with E[F_emp] = c F for labels of the network's own, or None where there is no such number.

        Args:
            per_sample: the divisor of a mean for each sample: a mean over so many positions or outputs enters F
                once, as it does L, and F_emp squared.
        """
        if not self.own_labels_give_fisher:
            return None
        return 1.0 if self.reduction == "sum" else 1.0 / per_sample

    @abstractmethod
    def at(self, output: Tensor, target: Tensor, batch: int = 0) -> LossPoint:
        """The loss at ``output`` (detached, with the batch first) and ``target``.

        Args:
            output: f, ``[N, ...]``.
            target: y.
            batch: its number in its pass: some losses compare two batches once.

        Raises:
            TypeError, ValueError: the two do not fit each other or this loss.
        """


def computes(loss: object, base: type[nn.Module]) -> bool:
    """Whether ``loss`` is a ``base``, or of a subclass that computes nothing else."""
    return (
        isinstance(loss, base)
        and type(loss).forward is base.forward
        and type(loss).__call__ is base.__call__
        and "forward" not in vars(loss)
    )


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


def check_same_shape(output: Tensor, target: object, owner: str) -> None:
    """Raises unless the target is a tensor in the shape of the output: broadcasting would pair wrong samples."""
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{owner}: expected a tensor as target, got {type(target).__name__}; of a list of single samples make "
            "batches: DataLoader(data, batch_size=...)"
        )
    if output.shape != target.shape:
        raise ValueError(
            f"{owner}: target has shape {list(target.shape)}, the output {list(output.shape)}; they must be equal"
        )


def check_weight(weight: Tensor, fits: bool, wanted: str, owner: str, name: str) -> None:
    """Raises a ValueError unless a weight fits, as PyTorch does, and is finite."""
    if not fits:
        raise ValueError(f"{owner}: {name} has shape {list(weight.shape)}; expected {wanted}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{owner}: {name} contains nan or inf; expected finite weights")


def has_negative(weight: Tensor | None) -> bool:
    """Whether a weight is there and somewhere negative: PyTorch takes it, no likelihood has it."""
    return weight is not None and bool((weight < 0).any())


def check_real(target: Tensor, owner: str) -> None:
    """Raises a TypeError unless the target is floating point."""
    if not target.is_floating_point():
        raise TypeError(f"{owner}: target has dtype {target.dtype}; a floating dtype is needed")
