"""outer_square against a loop over samples in float64, by the definition of the matrix product."""

import pytest
import torch
from bounds import assert_within, runs_cuda_sources
from outer_sums import WindowedKernel
from torch import Tensor


class TestOuterSquare(WindowedKernel):
    name = "outer_square"
    shapes = [
        (1, 3, 1, 37, 29),
        (3, 4, 1, 37, 29),
        (1, 5, 2, 37, 29),
        (2, 3, 7, 37, 29),
        (1, 2, 16, 37, 29),
        (2, 2, 33, 37, 29),
    ]
    pieces = [(2, 65, 17, 130, 140)]

    def oracle(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        a, g = a.double(), g.double()
        result = torch.zeros(g.shape[3], a.shape[2], dtype=torch.float64, device=a.device)
        magnitude = torch.zeros_like(result)
        for v in range(g.shape[0]):
            for n in range(a.shape[0]):
                result += (g[v, n].T @ a[n]) ** 2
                magnitude += (g[v, n].T.abs() @ a[n].abs()) ** 2
        return result, magnitude

    def terms(self, a: Tensor, g: Tensor) -> int:
        """2 (S + 2) for the squared product of S terms, V N + 1 for the sum of the squares."""
        V, N, S, _ = g.shape
        return 2 * (S + 2) + V * N + 1

    def roundoff(self, a: Tensor, g: Tensor) -> float:
        return 2.0**-16 if self.on_tensor_cores(a) else super().roundoff(a, g)

    def on_tensor_cores(self, a: Tensor) -> bool:
        return runs_cuda_sources(a) and a.dtype != torch.float64

    def bounded(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """One position of 16-bit inputs is on the GPU one product of squares, each of the two rounded.

        They are rounded to the 8 bits of bfloat16, or the 11 of TF32 for float16.
        """
        expected, bound = super().bounded(a, g)
        rounded = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(a.dtype, 0.0)
        if self.on_tensor_cores(a) and a.shape[1] == 1:
            bound = bound + 2 * 1.01 * rounded * expected
        return expected, bound

    def test_two_calls_on_several_tiles_give_identical_bits(self, piece, dtype, device):
        inputs = self.inputs(piece, dtype, device)
        assert torch.equal(self.kernel(*inputs), self.kernel(*inputs))

    @pytest.mark.parametrize("size", [255, 257])
    def test_every_axis_may_be_longer_than_a_block(self, axis, size, device):
        self.check(*self.inputs((self.sizes | {axis: size}).values(), torch.float32, device))

    @pytest.mark.parametrize("samples", [1, 5, 127, 128, 129, 300])
    @pytest.mark.parametrize("features", [(1, 1), (13, 33), (300, 5), (11, 600)])
    def test_one_position_is_right_by_either_kind_of_product(
        self, features, samples, dtype, products, simd
    ):
        O, I = features
        self.check(*self.inputs((1, samples, 1, I, O), dtype))

    @pytest.mark.parametrize(
        "features",
        [(1, 1), (11, 31), (12, 32), (13, 33), (143, 255), (145, 257), (5, 300), (300, 5)],
    )
    @pytest.mark.parametrize("positions", [1, 3])
    def test_tails_of_tiles_and_blocks_are_right(self, features, positions, device, simd):
        O, I = features
        self.check(*self.inputs((1, 4, positions, I, O), torch.float32, device))

    @pytest.mark.parametrize("positions", [255, 256, 257, 513])
    def test_positions_beyond_one_panel_are_summed_before_the_square(self, positions, device, simd):
        self.check(*self.inputs((2, 2, positions, 33, 13), torch.float64, device))

    @pytest.mark.parametrize("samples", [255, 256, 257, 1000])
    def test_many_samples_of_one_position_are_right(self, samples, device, simd):
        self.check(*self.inputs((3, samples, 1, 33, 13), torch.float64, device))

    def test_a_block_per_thread_and_a_run_of_samples_per_thread_agree_with_the_loop(self, device):
        self.check(*self.inputs((1, 129, 3, 3, 2), torch.float64, device))
        self.check(*self.inputs((1, 5, 3, 200, 300), torch.float64, device))

    @pytest.mark.parametrize("sizes", [(1, 3, 1), (2, 3, 7), (1, 2, 33)])
    def test_tf32_is_taken_on_cuda_where_the_setting_allows_it(self, sizes, device):
        a, g = self.inputs((*sizes, 37, 140), torch.float32, device)
        exact = self.kernel(a, g)
        expected, bound = self.bounded(a, g)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            actual = self.kernel(a, g)
        finally:
            torch.set_float32_matmul_precision(before)
        # of one position, squares rounded to 11 bits; otherwise from 2^-16 to 2^-10
        squares = bound + 2 * 1.01 * 2.0**-11 * expected
        bound = squares if a.shape[1] == 1 else 2.0**6 * bound
        assert_within(actual, expected, bound, "TF32")
        assert torch.equal(actual, exact) != runs_cuda_sources(a)

    @pytest.mark.parametrize("columns", [8, 136])
    @pytest.mark.parametrize("positions", [2, 31, 64, 130])
    def test_rows_of_whole_lines_of_16_bytes_are_right(
        self, positions, columns, dtype, device, simd
    ):
        sizes = (2, 2, positions, columns, 144 - columns)
        self.check(*self.inputs(sizes, dtype, device), workspaces=(0,))

    @pytest.mark.parametrize("samples", [1, 17, 100])
    @pytest.mark.parametrize("vectors", [1, 3])
    def test_one_position_of_whole_lines_is_right(self, vectors, samples, dtype, device, simd):
        self.check(*self.inputs((vectors, samples, 1, 136, 72), dtype, device), workspaces=(0,))

    def test_strides_of_dimensions_of_size_1_are_no_multiples_of_a_line(self, dtype, device, simd):
        a = torch.randn(1, 137).to(device, dtype)[:, None, :136]
        g = torch.randn(1, 1, 73).to(device, dtype)[..., None, :72]
        lines = torch.randn(1, 1, 1, 72).to(device, dtype)
        for there in (g, lines):
            self.check(a, there, workspaces=(0,))
            several = there[..., :64].expand(1, 1, 3, 64)
            self.check(a[:, :, :128].expand(1, 3, 128), several, workspaces=(0,))

    @pytest.mark.parametrize("samples", [1, 40])
    def test_one_position_of_bfloat16_is_on_cuda_one_product_of_rounded_squares(
        self, samples, device
    ):
        a, g = self.inputs((1, samples, 1, 136, 72), torch.bfloat16, device)
        x, y = a[:, 0].double() ** 2, g[0, :, 0].double() ** 2
        if runs_cuda_sources(a):  # the CPU multiplies the squares as they are
            x, y = x.bfloat16().double(), y.bfloat16().double()
        bound = 2.0**-22 * (samples + 4) * (y.T @ x)
        assert_within(self.kernel(a, g), y.T @ x, bound, "the product of squares")

    def test_a_nan_reaches_only_its_row_and_column(self, device):
        a, g = self.inputs((1, 3, 2, 40, 20), torch.float32, device)
        g[0, 1, 1, 4] = float("nan")
        found = self.kernel(a, g).isnan()
        assert found[4].all() and found.sum() == 40

    @pytest.mark.parametrize("positions", [1, 2])
    def test_an_infinity_gives_infinities_in_its_column(self, positions, dtype, device):
        a, g = self.inputs((1, 3, positions, 40, 20), dtype, device)
        a[1, 0, 4] = float("inf")
        found = self.kernel(a, g)
        assert found[:, 4].isposinf().all()
        assert found.isfinite().sum() == 39 * 20

    def test_values_beyond_the_largest_of_bfloat16_are_right(self, device):
        a, g = self.inputs((1, 3, 4, 5, 7), torch.float32, device)
        a[1, 2, 3] = 3.4e38  # rounded to bfloat16 it would be infinite
        g *= 1e-30
        expected, bound = self.bounded(a, g)
        # in the other columns the squares are below the smallest number
        assert_within(self.kernel(a, g)[:, 3], expected[:, 3], bound[:, 3], "its column")
