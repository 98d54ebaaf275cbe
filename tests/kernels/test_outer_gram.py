"""outer_gram against per-sample gradients formed in float64."""

import torch
from outer_sums import OuterKernel
from torch import Tensor

A, G = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)
A2, G2 = torch.zeros(6, 7, 4), torch.zeros(6, 7, 5)


class TestOuterGram(OuterKernel):
    name = "outer_gram"
    sizes = {"N": 3, "S": 2, "N'": 4, "S'": 3, "I": 5, "O": 7}
    # by inner products of positions, and by gradients
    shapes = [(5, 1, 4, 1, 37, 29), (3, 2, 4, 3, 37, 29), (5, 9, 4, 17, 5, 7), (3, 33, 6, 20, 6, 3)]
    pieces = [
        (1100, 1, 1030, 1, 33, 13),
        (400, 3, 9, 2, 70, 65),
        (1, 1100, 2, 1, 90, 80),
        (150, 9, 140, 8, 150, 70),
    ]
    long_sample = (1, 30000, 2, 7, 50, 30)
    refused = "a, g, a2 or g2"
    bad_calls = [
        ((A[0], G, A2, G2), ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
        ((A, G[None], A2, G2), ValueError, r"g has shape \[1, 2, 3, 5\], expected \[2, 3, O\]"),
        ((A, G[:, :2], A2, G2), ValueError, r"g has shape \[2, 2, 5\], expected \[2, 3, O\]"),
        ((A, G, G2, G2), ValueError, r"a2 has shape \[6, 7, 5\], expected \[N', S', 4\]"),
        ((A, G, A2, A2), ValueError, r"g2 has shape \[6, 7, 4\], expected \[6, 7, 5\]"),
        ((A, G, A2, G2[1:]), ValueError, r"g2 has shape \[5, 7, 5\], expected \[6, 7, 5\]"),
        ((A.int(), G, A2, G2), TypeError, "a has dtype"),
        ((A, G, A2, G2.double()), TypeError, "expected the same dtype"),
    ]

    def shapes_of(self, N, S, N2, S2, I, O):
        return [(N, S, I), (N, S, O), (N2, S2, I), (N2, S2, O)]

    def oracle(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        def product(a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> Tensor:
            return (g.mT @ a).flatten(1) @ (g2.mT @ a2).flatten(1).T

        wide = [x.double() for x in inputs]
        return product(*wide), product(*(x.abs() for x in wide))

    def terms(self, a: Tensor, g: Tensor, a2: Tensor, g2: Tensor) -> int:
        """By positions: sums of I, O and S S' terms. By gradients: of S, S' and O I, in bands of at most 2^21."""
        (_, S, I), O, S2 = a.shape, g.shape[2], a2.shape[1]
        return max(I + O + S * S2, S + S2 + O * I) + 4

    def test_transposed_and_expanded_inputs_are_right(self, device):
        a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
        g = torch.randn(1, 3, 7, device=device).expand(4, 3, 7)
        self.check(a, g, a[:2, :1], g[:2, :1])
        self.check(a.repeat(1, 9, 1), g.repeat(1, 9, 1), a, g)

    def test_half_precision_products_are_accumulated_in_float32(self, device):
        a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
        assert self.kernel(a, a, a, a).item() == 4096.0**2

    def test_a_nan_reaches_only_its_sample(self, shape, device):
        inputs = self.inputs(shape, torch.float32, device)
        inputs[1][1, 0, 2] = float("nan")
        inputs[2][3, 0, 1] = float("nan")
        found = self.kernel(*inputs).isnan()
        assert found[1].all() and found[:, 3].all()
        assert found.sum() == found.shape[0] + found.shape[1] - 1
