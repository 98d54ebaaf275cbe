"""What the operators should give, by other definitions, in the simplest terms autograd has.

The Hessian is the double backward of the whole risk, computed by torch's own loss on all data at once;
the GGN is Jᵀ H_ℓ J, the Hessian at v = 0 of the loss of the linearised model f(θ) + J v; the empirical
Fisher is a loop over samples. Nothing here imports curvext.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """The implementations of attention and recurrence that have a second derivative."""
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [b.enabled for b in backends]
    with sdpa_kernel(SDPBackend.MATH):
        try:
            for b in backends:
                b.enabled = False
            yield
        finally:
            for b, enabled in zip(backends, before, strict=True):
                b.enabled = enabled


class Oracle:
    """The dense truth about one risk on all its data.

    Args:
        model: the network.
        loss: a torch loss, or a callable with ``reduction`` that also computes "sum" if told so.
        x: all inputs; a mapping is passed by keyword and ``.logits`` taken.
        y: all targets.
        params: names of the parameters to differentiate; None for all that require grad.
    """

    def __init__(
        self, model: nn.Module, loss: Any, x: Any, y: Any, params: Sequence[str] | None = None
    ) -> None:
        self.loss = loss
        self.y = y
        named = dict(model.named_parameters())
        self.leaves = [
            p for n, p in named.items() if (p.requires_grad if params is None else n in params)
        ]
        self.size = sum(p.numel() for p in self.leaves)
        self._call: Callable[[], Tensor] = lambda: _evaluate(model, x)
        with twice_differentiable():
            self.output = self._call()

    def flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """One vector of tensors like the leaves; None counts as zero."""
        pairs = zip(tensors, self.leaves, strict=True)
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in pairs])

    def _grad(self, scalar: Tensor, **options: bool) -> Tensor:
        if not scalar.requires_grad:
            return torch.zeros(self.size, dtype=scalar.dtype, device=scalar.device)
        return self.flat(
            torch.autograd.grad(
                scalar, self.leaves, allow_unused=True, retain_graph=True, **options
            )
        )

    def value(self) -> Tensor:
        """L."""
        return self.loss(self.output, self.y).detach()

    def gradient(self) -> Tensor:
        """∇L."""
        return self._grad(self.loss(self.output, self.y)).detach()

    def hvp(self, V: Tensor) -> Tensor:
        """H V for V [P, K], by double backward."""
        gradient = self._grad(self.loss(self.output, self.y), create_graph=True)
        return torch.stack([self._grad(gradient @ v.to(gradient)) for v in V.unbind(1)], 1)

    def hvp_by_differences(self, V: Tensor) -> Tensor:
        """H V by differences of gradients, of sixth order: error about eps^(6/7), 1e-8 is safe in float64."""
        h = 3e-3
        columns = []
        for v in V.unbind(1):
            direction = v / v.norm()
            parts = v.split([p.numel() for p in self.leaves])
            start = [p.detach().clone() for p in self.leaves]
            total = torch.zeros_like(direction)
            for step, weight in ((1, 45), (2, -9), (3, 1)):
                for sign in (1, -1):
                    for p, s, d in zip(self.leaves, start, parts, strict=True):
                        p.data.copy_(s + sign * step * h * d.view(p.shape) / v.norm())
                    total += sign * weight * self._grad(self.loss(self._call(), self.y)).detach()
            for p, s in zip(self.leaves, start, strict=True):
                p.data.copy_(s)
            columns.append(total / (60 * h) * v.norm())
        return torch.stack(columns, 1)

    def jacobian(self) -> Tensor:
        """J [outputs, P], row by row."""
        return torch.stack([self._grad(f) for f in self.output.flatten()])

    def output_hessian(self) -> Tensor:
        """∂²L/∂f² over all outputs of all samples, [outputs, outputs]."""
        f = self.output.detach()
        return torch.autograd.functional.hessian(
            lambda z: self.loss(z.view(f.shape), self.y), f.flatten()
        )

    def ggn(self) -> Tensor:
        """G [P, P]: the Hessian of the loss of the linearised model."""
        J = self.jacobian()
        return J.T @ self.output_hessian() @ J

    def shares(self) -> Tensor:
        """Each sample's share of the risk, [N] with graph: they sum to L."""
        summed = with_reduction(self.loss, "sum")
        f, y = self.output, self.y
        alone = torch.stack([summed(f[n : n + 1], y[n : n + 1]) for n in range(len(f))])
        if self.loss.reduction == "sum":
            return alone
        divisor = float(summed(f.detach(), y) / self.loss(f.detach(), y))
        return alone / divisor

    def sample_gradients(self) -> Tensor:
        """g_n [N, P]: N times the gradient of sample n's share for "mean", of the share for "sum"."""
        factor = 1 if self.loss.reduction == "sum" else len(self.output)
        return torch.stack([factor * self._grad(share) for share in self.shares()])

    def empirical_fisher(self) -> Tensor:
        """F_emp [P, P]."""
        g = self.sample_gradients()
        return g.T @ g / (1 if self.loss.reduction == "sum" else len(g))

    def token_gradients(self, positions: Sequence[Tensor]) -> Tensor:
        """g_m [M, P] for ``positions``, each a mask over the targets: M times the position's share."""
        summed = with_reduction(self.loss, "sum")
        f = self.output.detach()
        mean = self.loss.reduction != "sum"
        factor = len(positions) / float(summed(f, self.y) / self.loss(f, self.y)) if mean else 1.0
        ignored = self.loss.ignore_index
        alone = [summed(self.output, torch.where(here, self.y, ignored)) for here in positions]
        return torch.stack([factor * self._grad(one) for one in alone])


def with_reduction(loss: Any, reduction: str) -> Any:
    """A copy of a loss that reduces otherwise."""
    other = copy.copy(loss)
    other.reduction = reduction
    return other


def _evaluate(model: nn.Module, x: Any) -> Tensor:
    output = model(**x) if isinstance(x, Mapping) else model(x)
    return output if isinstance(output, Tensor) else output.logits
