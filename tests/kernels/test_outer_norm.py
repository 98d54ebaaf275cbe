"""outer_norm against per-sample gradients formed in float64."""

import torch
from outer_sums import WindowedKernel
from torch import Tensor


class TestOuterNorm(WindowedKernel):
    name = "outer_norm"
    # one position, by inner products of positions, by gradients
    shapes = [
        (1, 5, 1, 37, 29),
        (3, 4, 1, 37, 29),
        (2, 3, 4, 37, 29),
        (1, 5, 33, 5, 7),
        (3, 2, 17, 6, 3),
    ]
    pieces = [(2, 700, 40, 129, 70), (2, 90, 100, 90, 200), (1, 25, 1, 300, 90000)]

    def oracle(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Some samples at a time: the gradients of all would be 5 GB of the largest case."""
        at_once = max(1, 2**22 // max(1, a.shape[2] * g.shape[3]))
        parts = [
            torch.stack([(y.mT @ x).square_().sum((2, 3)) for y, x in ((g, a), (g.abs(), a.abs()))])
            for a, g in zip(a.double().split(at_once), g.double().split(at_once, 1), strict=True)
        ]
        result, magnitude = torch.cat(parts, 2)
        return result, magnitude

    def terms(self, a: Tensor, g: Tensor) -> int:
        """All three ways are sums over s, t, i and o of four factors: the sizes of the sums, and the steps between."""
        (_, _, S, O), I = g.shape, a.shape[2]
        return S * S + 2 * S + I * O.bit_length() + I + O + 8

    def test_a_nan_reaches_only_its_sample(self, shape, device):
        a, g = self.inputs(shape, torch.float32, device)
        g[0, 1, 0, 2] = float("nan")
        found = self.kernel(a, g).isnan()
        assert found[0, 1] and found.sum() == 1

    # on a GPU that has clusters of blocks each shares a gradient
    def test_few_large_samples_are_shared_by_blocks(self, dtype, device, simd):
        self.check(*self.inputs((1, 2, 150, 130, 140), dtype, device), workspaces=(0,))
