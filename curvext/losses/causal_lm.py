"""The loss of a causal language model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from curvext.losses.base import check_reduction


class CausalLMLoss(nn.Module):
    """Next-token cross-entropy of a language model's logits ``[N, T, V]`` and labels ``[N, T]``.

        ℓ = − Σ_n Σ_{t<T-1} log softmax(z_{n,t})[y_{n,t+1}]

    The labels are shifted here, as Hugging Face models do it, so logits and labels come unshifted.
    "mean" divides by the number of labels that are not ignored.

    Args:
        ignore_index: labels of this value do not count.
        reduction: "mean" or "sum".
        label_smoothing: as in ``nn.CrossEntropyLoss``.

    Example:
        >>> import torch, curvext as cx
        >>> loss = cx.CausalLMLoss()
        >>> round(loss(torch.zeros(2, 5, 7), torch.ones(2, 5, dtype=torch.long)).item(), 4)
        1.9459
    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction, "CausalLMLoss")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss as PyTorch computes it, differentiable."""
        return F.cross_entropy(
            logits[:, :-1].transpose(1, 2),
            labels[:, 1:],
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
