"""outer_dot against per-sample gradients formed in float64."""

import pytest
import torch
from outer_sums import OuterKernel
from torch import Tensor

A, G, W = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(6, 5, 4)


class TestOuterDot(OuterKernel):
    name = "outer_dot"
    sizes = {"V": 2, "N": 3, "S": 2, "I": 5, "O": 7, "K": 3}
    # position by position, and with the gradients formed
    shapes = [
        (1, 5, 1, 37, 29, 1),
        (3, 4, 1, 37, 29, 3),
        (2, 3, 4, 37, 29, 2),
        (1, 5, 33, 5, 7, 4),
        (2, 3, 17, 9, 6, 5),
    ]
    pieces = [
        (2, 300, 8, 30, 1030, 1),
        (1, 2, 1500, 17, 1025, 1),
        (1, 900, 4, 300, 70, 8),
        (1, 3, 9, 9000, 40, 3),
    ]
    long_sample = (1, 1, 30000, 50, 30, 3)
    refused = "a, g or W"
    bad_calls = [
        ((A[0], G, W), ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
        ((A, G[0], W), ValueError, r"g has shape \[2, 3, 5\], expected \[V, N, S, O\]"),
        ((A, G[:, :, :2], W), ValueError, r"expected \[V, 2, 3, O\]"),
        ((A, G, W[0]), ValueError, r"W has shape \[5, 4\], expected \[K, 5, 4\]"),
        ((A, G, W.mT), ValueError, r"W has shape \[6, 4, 5\], expected \[K, 5, 4\]"),
        ((A.int(), G, W), TypeError, "a has dtype"),
        ((A, G.double(), W), TypeError, "expected the same dtype"),
        ((A, G, W.half()), TypeError, "W has dtype"),
        ((A.half(), G.half(), W.double()), TypeError, "W has dtype"),
    ]

    def shapes_of(self, V, N, S, I, O, K):
        return [(N, S, I), (V, N, S, O), (K, O, I)]

    def oracle(self, a: Tensor, g: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        a, g, W = a.double(), g.double(), W.double()
        flat = W.flatten(1).T
        return (g.mT @ a).flatten(2) @ flat, (g.abs().mT @ a.abs()).flatten(2) @ flat.abs()

    def terms(self, a: Tensor, g: Tensor, W: Tensor) -> int:
        """A sum of S O I products of three factors, in whatever order."""
        return g.shape[2] + g.shape[3] + a.shape[2] + 4

    def test_transposed_and_expanded_inputs_are_right(self, device):
        a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
        g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
        W = torch.randn(5, 9, 7, device=device).mT
        self.check(a, g, W)
        self.check(a, g, W[:1])

    def test_matrices_in_the_dtype_of_the_result_are_taken_as_they_are(self, shape, device):
        a, g, _ = self.inputs(shape, torch.bfloat16, device)
        self.check(a, g, torch.randn(shape[5], shape[4], shape[3], device=device))

    def test_half_precision_products_are_accumulated_in_float32(self, device):
        a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
        W = torch.ones(5, 1, 1, dtype=torch.bfloat16, device=device)
        assert self.kernel(a, a[None], W[:1]).item() == 4096.0
        assert self.kernel(a, a[None], W).eq(4096.0).all()

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
