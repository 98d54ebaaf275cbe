"""outer_cov against the sum over rows in float64."""

import torch
from outer_sums import OuterKernel
from torch import Tensor

X, W = torch.zeros(3, 4), torch.zeros(3)


class TestOuterCov(OuterKernel):
    name = "outer_cov"
    sizes = {"M": 6, "D": 7}
    # one tile, several, and a last one of one column
    shapes = [(5, 37), (70, 128), (9, 129), (40, 300)]
    pieces = [(9000, 600)]
    long_sample = (30000, 40)
    refused = "x or w"
    bad_calls = [
        ((X[0], W), ValueError, r"x has shape \[4\], expected \[M, D\]"),
        ((X, W[:2]), ValueError, r"w has shape \[2\], expected \[3\], a weight for each row of x"),
        ((X, X), ValueError, r"w has shape \[3, 4\], expected \[3\]"),
        ((X.int(), W), TypeError, "x has dtype"),
        ((X, W.double()), TypeError, "w has dtype"),
    ]

    def shapes_of(self, M, D):
        return [(M, D), (M,)]

    def oracle(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x, w = x.double(), w.double()
        return self.sum_of_rows(x, w), self.sum_of_rows(x.abs(), w.abs())

    def sum_of_rows(self, x: Tensor, w: Tensor) -> Tensor:
        """By the definition; of many rows as a product, which the reference is, too."""
        if len(x) > 200:
            return x.T @ (w.unsqueeze(1) * x)
        result = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        for row, weight in zip(x, w, strict=True):
            result.addr_(weight * row, row)
        return result

    def terms(self, x: Tensor, w: Tensor) -> int:
        """A sum of M terms of two products each, in pieces."""
        return len(x) + 4

    def has_its_structure(self, actual: Tensor) -> bool:
        """It is symmetric."""
        return torch.equal(actual, actual.T)

    def test_transposed_and_expanded_inputs_are_right(self, device):
        x = torch.randn(9, 150, device=device)
        self.check(x.T, torch.randn(1, device=device).expand(150))
        self.check(x[:, ::2], torch.randn(18, device=device)[::2])
        self.check(x[:1].expand(6, -1), torch.randn(6, device=device))

    def test_half_precision_is_summed_in_float32_and_weights_may_be_finer(self, device):
        x = torch.ones(4096, 1, dtype=torch.bfloat16, device=device)
        assert self.kernel(x, x[:, 0]).item() == 4096.0
        fine = torch.full((4096,), 1 + 2.0**-12, device=device)
        assert self.kernel(x, fine).item() == 4097.0

    def test_a_nan_reaches_only_its_row_and_column(self, device):
        x, w = self.inputs((20, 200), torch.float32, device)
        x[3, 140] = float("nan")
        found = self.kernel(x, w).isnan()
        assert found[140].all() and found[:, 140].all()
        assert found.sum() == 2 * 200 - 1
