"""outer_sum against per-sample gradients formed in float64."""

import json
from itertools import accumulate

import pytest
import torch
from outer_sums import OuterKernel
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

A, G, C = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(6, 1, 2)


class TestOuterSum(OuterKernel):
    name = "outer_sum"
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
    refused = "a, g or c"
    bad_calls = [
        ((A[0], G, C), ValueError, r"a has shape \[3, 4\], expected \[N, S, I\]"),
        ((A, G[0], C), ValueError, r"g has shape \[2, 3, 5\], expected \[V, N, S, O\]"),
        ((A, G[:, :, :2], C), ValueError, r"expected \[V, 2, 3, O\]"),
        ((A, G, C[0]), ValueError, r"c has shape \[1, 2\], expected \[K, 1, 2\]"),
        ((A, G, C.mT), ValueError, r"c has shape \[6, 2, 1\], expected \[K, 1, 2\]"),
        ((A.int(), G, C), TypeError, "a has dtype"),
        ((A, G.double(), C), TypeError, "expected the same dtype"),
        ((A, G, C.half()), TypeError, "c has dtype"),
        ((A.half(), G.half(), C.double()), TypeError, "c has dtype"),
    ]

    def shapes_of(self, V, N, S, I, O, K):
        return [(N, S, I), (V, N, S, O), (K, V, N)]

    def oracle(self, a: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a, g, c = a.double(), g.double(), c.double().flatten(1)
        shape = (c.shape[0], g.shape[3], a.shape[2])
        result = c @ (g.mT @ a).flatten(2).flatten(0, 1)
        magnitude = c.abs() @ (g.abs().mT @ a.abs()).flatten(2).flatten(0, 1)
        return result.view(shape), magnitude.view(shape)

    def terms(self, a: Tensor, g: Tensor, c: Tensor) -> int:
        """A sum of V N S products of three factors, in whatever order."""
        V, N, S, _ = g.shape
        return V + N * S + V * N + 4

    def test_transposed_and_expanded_inputs_are_right(self, device):
        a = torch.randn(4, 9, 3, device=device).transpose(1, 2)
        g = torch.randn(1, 1, 3, 7, device=device).expand(2, 4, 3, 7)
        c = torch.randn(5, 4, 2, device=device).mT
        self.check(a, g, c)
        self.check(a, g, c[:1])

    def test_weights_in_the_dtype_of_the_result_are_taken_as_they_are(self, shape, device):
        a, g, _ = self.inputs(shape, torch.bfloat16, device)
        self.check(a, g, torch.randn(shape[5], shape[0], shape[1], device=device))

    def test_half_precision_products_are_accumulated_in_float32(self, device):
        a = torch.ones(1, 4096, 1, dtype=torch.bfloat16, device=device)
        c = torch.ones(5, 1, 1, dtype=torch.bfloat16, device=device)
        assert self.kernel(a, a[None], c[:1]).item() == 4096.0
        assert self.kernel(a, a[None], c).eq(4096.0).all()

    def test_a_nan_reaches_only_its_row(self, shape, device):
        a, g, c = self.inputs(shape, torch.float32, device)
        g[0, 1, 0, 2] = float("nan")
        found = self.kernel(a, g, c).isnan()
        assert found[:, 2].all() and found.sum() == shape[5] * shape[3]

    def test_a_nan_in_a_weight_reaches_only_its_sum(self, shape, device):
        a, g, c = self.inputs(shape, torch.float32, device)
        c[0, 0, 1] = float("nan")
        found = self.kernel(a, g, c).isnan()
        assert found[0].all() and not found[1:].any()

    @pytest.mark.parametrize(
        "sizes", [(1, 129, 1, 33, 13, 1), (1, 129, 1, 13, 33, 1), (2, 5, 40, 300, 7, 1)]
    )
    def test_it_is_right_by_either_kind_of_product(self, sizes, dtype, products, simd):
        self.check(*self.inputs(sizes, dtype))

    def test_the_result_is_held_once(self, products, simd, tmp_path):
        a, g, c = torch.randn(64, 1, 256), torch.randn(1, 64, 1, 256), torch.rand(1, 1, 64)
        self.kernel(a, g, c)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            self.kernel(a, g, c)
        seen.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        changes = [e for e in events if e["name"] == "[memory]"]
        changes.sort(key=lambda e: e["ts"])
        peak = max(accumulate(e["args"]["Bytes"] for e in changes))
        result, weighed = 4 * 256 * 256, 4 * 64 * 256
        assert result < peak < 1.1 * (result + weighed)
