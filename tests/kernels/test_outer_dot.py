"""outer_dot against per-sample gradients formed in float64."""

import pytest
import torch
from outer_sums import BAD_PAIRS, A, ColumnsKernel, G
from torch import Tensor

W = torch.zeros(6, 5, 4)


class TestOuterDot(ColumnsKernel):
    name = "outer_dot"
    # the last: a band of W narrower than the rows of g
    pieces = [*ColumnsKernel.pieces, (1, 2, 40, 1100, 1030, 1)]
    refused = "a, g or W"
    bad_calls = [
        *(((*pair, W), error, message) for pair, error, message in BAD_PAIRS),
        ((A, G, W[0]), ValueError, r"W has shape \[5, 4\], expected \[K, 5, 4\]"),
        ((A, G, W.mT), ValueError, r"W has shape \[6, 4, 5\], expected \[K, 5, 4\]"),
        ((A, G, W.half()), TypeError, "W has dtype"),
        ((A.half(), G.half(), W.double()), TypeError, "W has dtype"),
    ]

    def columns(self, V, N, S, I, O, K):
        return (K, O, I)

    def oracle(self, a: Tensor, g: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        a, g, W = a.double(), g.double(), W.double()
        flat = W.flatten(1).T
        return (g.mT @ a).flatten(2) @ flat, (g.abs().mT @ a.abs()).flatten(2) @ flat.abs()

    def terms(self, a: Tensor, g: Tensor, W: Tensor) -> int:
        """A sum of S O I products of three factors, in whatever order."""
        return g.shape[2] + g.shape[3] + a.shape[2] + 4

    def test_a_nan_reaches_only_its_sample(self, shape, device):
        a, g, W = self.inputs(shape, torch.float32, device)
        g[0, 1, 0, 2] = float("nan")
        found = self.kernel(a, g, W).isnan()
        assert found[0, 1].all() and found.sum() == shape[5]

    def test_a_nan_in_a_matrix_reaches_only_its_column(self, shape, device):
        a, g, W = self.inputs(shape, torch.float32, device)
        W[0, 1, 2] = float("nan")
        found = self.kernel(a, g, W).isnan()
        assert found[..., 0].all() and not found[..., 1:].any()

    @pytest.mark.parametrize(
        "sizes", [(1, 129, 1, 33, 13, 1), (1, 5, 40, 300, 7, 2), (2, 5, 9, 3, 4, 1)]
    )
    def test_it_is_right_by_either_kind_of_product(self, sizes, dtype, products, simd):
        self.check(*self.inputs(sizes, dtype))

    def test_a_long_sample_is_taken_in_pieces_by_either_kind_of_product(self, products):
        self.check(*self.inputs((1, 2, 1500, 1025, 17, 1), torch.float32), workspaces=(0,))

    # on a GPU that has clusters of blocks each shares a sample, position by position
    def test_few_large_samples_are_shared_by_blocks(self, dtype, device, simd):
        self.check(*self.inputs((1, 2, 130, 150, 140, 1), dtype, device), workspaces=(0,))
