"""The general path: the per-sample gradients of some parameters by one backward pass for each sample.

A pass through the whole batch's graph with the cotangent of one sample is exact whatever the model does, and costs as
much as a pass for all. Where the model gives a sample alone the output that it gave in the batch, a pass of that sample
alone is cheaper by a factor N; but equal outputs do not prove equal derivatives (of a gate that is zero, say). So a
random combination of the gradients found so is compared with the same combination by one pass of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from curvext import data

#: parameter, sample, its gradient
HandOn = Callable[[int, int, Tensor], None]

#: elements of gradients that are kept until they are compared; beyond it they are computed twice
_KEPT = 16 << 20
#: errors that a model may raise when it cannot run on a part of its batch
_CANNOT = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError)


class OneByOne:
    """One batch, whose samples can be taken one by one.

    Args:
        output: f, ``[N, ...]``, with its graph, which may be gone if ``rerun`` is given.
        parameters: the leaves θ.
        rerun: a batch → its output with a new graph; None if the graph at hand is the only one.
        batch: the batch.
    """

    def __init__(
        self,
        output: Tensor,
        parameters: Sequence[Tensor],
        rerun: Callable[[Any], Tensor] | None,
        batch: Any,
    ) -> None:
        self._output = output
        self._parameters = parameters
        self._rerun = rerun
        self._batch = batch
        self._samples = int(output.shape[0])
        #: whether single samples are worth a try
        self._alone = rerun is not None and self._samples > 1

    def gradients(self, numbers: Sequence[int], cotangent: Tensor, hand_on: HandOn) -> None:
        """Hands on J_nᵀ cotangent_n of every sample n for these parameters, without zeros."""
        wanted = [self._parameters[i] for i in numbers]
        self._alone = self._alone and self._by_themselves(numbers, wanted, cotangent, hand_on)
        if self._alone:
            return
        whole = self._output if self._rerun is None else self._rerun(self._batch)
        for n in range(self._samples):
            only = torch.zeros_like(cotangent)
            only[n] = cotangent[n]
            _hand_on(hand_on, numbers, n, _pulled_back(whole, wanted, only, retain=True))

    def _by_themselves(
        self, numbers: Sequence[int], wanted: Sequence[Tensor], cotangent: Tensor, hand_on: HandOn
    ) -> bool:
        """Whether samples alone give the gradients of the batch; if so, hands them on."""
        assert self._rerun is not None
        keeps = self._samples * sum(p.numel() for p in wanted) <= _KEPT
        kept: list[list[Tensor | None]] = []
        check = _Combination(wanted, self._samples, cotangent)
        for n, found in enumerate(self._single(wanted, cotangent)):
            if found is None:
                return False
            check.add(n, found)
            if keeps:
                kept.append(found)
        whole = self._rerun(self._batch)
        if not check.agrees(_pulled_back(whole, wanted, check.cotangent, retain=False)):
            return False
        for n, found in enumerate(kept if keeps else self._single(wanted, cotangent)):
            assert found is not None
            _hand_on(hand_on, numbers, n, found)
        return True

    def _single(
        self, wanted: Sequence[Tensor], cotangent: Tensor
    ) -> Iterator[list[Tensor | None] | None]:
        """The gradients of each sample by itself, None where the model gives another output than in the batch."""
        for n in range(self._samples):
            output = self._output_of(n)
            if output is None:
                yield None
                return
            yield _pulled_back(output, wanted, cotangent[n : n + 1], retain=False)

    def _output_of(self, n: int) -> Tensor | None:
        assert self._rerun is not None
        expected = self._output.detach()[n : n + 1]
        try:
            output = self._rerun(data.sample(self._batch, n, self._samples))
        except _CANNOT:
            return None
        if output.shape != expected.shape or not output.requires_grad:
            return None
        tolerance = 64 * torch.finfo(output.dtype).eps * float(self._output.detach().abs().max())
        close = torch.allclose(output.detach(), expected, rtol=0, atol=tolerance)
        return output if close else None


class _Combination:
    """Σ_n w_n G_n with random weights, over gradients G_n that arrive one after the other.

    Args:
        wanted: the parameters.
        samples: N.
        cotangent: that of each sample.
    """

    def __init__(self, wanted: Sequence[Tensor], samples: int, cotangent: Tensor) -> None:
        generator = torch.Generator(cotangent.device).manual_seed(0x5EED)
        weights = torch.randn(samples, generator=generator, device=cotangent.device)
        self._weights = weights.to(cotangent.dtype)
        #: of the pass through the whole batch that gives the same combination
        self.cotangent = cotangent * self._weights.view(-1, *[1] * (cotangent.ndim - 1))
        self._eps = max(torch.finfo(t.dtype).eps for t in (cotangent, *wanted))
        self._sums = [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in wanted]
        self._reach = [torch.zeros((), dtype=torch.float64, device=p.device) for p in wanted]

    def add(self, n: int, gradients: Sequence[Tensor | None]) -> None:
        weight = self._weights[n].double()
        for total, reach, gradient in zip(self._sums, self._reach, gradients, strict=True):
            if gradient is not None and gradient.numel():
                part = gradient.double() * weight
                total += part
                reach += part.abs().max()

    def agrees(self, expected: Sequence[Tensor | None]) -> bool:
        """Whether the pass of the whole batch agrees up to the rounding of its sums."""
        for total, reach, other in zip(self._sums, self._reach, expected, strict=True):
            difference = total if other is None else total - other.double()
            size = reach if other is None or not other.numel() else reach + other.abs().max()
            if difference.numel() and bool(difference.abs().max() > 1024 * self._eps * size):
                return False
        return True


def _pulled_back(
    output: Tensor, wanted: Sequence[Tensor], cotangent: Tensor, retain: bool
) -> list[Tensor | None]:
    found = torch.autograd.grad(output, wanted, cotangent, retain_graph=retain, allow_unused=True)
    return [g.to_dense() if g is not None and g.is_sparse else g for g in found]


def _hand_on(
    hand_on: HandOn, numbers: Sequence[int], n: int, gradients: Sequence[Tensor | None]
) -> None:
    for i, gradient in zip(numbers, gradients, strict=True):
        if gradient is not None:
            hand_on(i, n, gradient)
