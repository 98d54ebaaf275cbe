"""outer_sum against per-sample gradients formed in float64."""

import json
from itertools import accumulate

import pytest
import torch
from outer_sums import BAD_PAIRS, A, ColumnsKernel, G
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

C = torch.zeros(6, 1, 2)


class TestOuterSum(ColumnsKernel):
    name = "outer_sum"
    refused = "a, g or c"
    bad_calls = [
        *(((*pair, C), error, message) for pair, error, message in BAD_PAIRS),
        ((A, G, C[0]), ValueError, r"c has shape \[1, 2\], expected \[K, 1, 2\]"),
        ((A, G, C.mT), ValueError, r"c has shape \[6, 2, 1\], expected \[K, 1, 2\]"),
        ((A, G, C.half()), TypeError, "c has dtype"),
        ((A.half(), G.half(), C.double()), TypeError, "c has dtype"),
    ]

    def columns(self, V, N, S, I, O, K):
        return (K, V, N)

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
