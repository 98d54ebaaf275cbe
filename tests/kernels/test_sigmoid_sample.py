"""sigmoid_sample: labels by their counters alone, in the frequencies of the model; residuals in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from bounds import unit_roundoff
from draws import Sampled, uniform
from element_outputs import ElementKernel
from outputs import randn

from curvext.kernels import sigmoid_sample


class TestSigmoidSample(ElementKernel, Sampled):
    name = "sigmoid_sample"

    def inputs(self, shape, dtype, device="cpu", vectors=2):
        z = 3 * randn(shape, device, dtype)
        return {"z": z, "w": self.weights(z), "seed": 5, "draw": 1, "first": 7}

    def oracle(self, z, w, seed, draw, first):
        count = z.shape[0] if z.dim() else 1
        inner = z[0].numel() if z.dim() and count else 1
        values = [uniform(seed, draw, first + n, m) for n in range(count) for m in range(inner)]
        drawn = torch.tensor(values, dtype=torch.float64, device=z.device).view(z.shape)
        x = z.double()
        score = torch.where(
            drawn < torch.sigmoid(x), -F.logsigmoid(-x).exp(), F.logsigmoid(x).exp()
        )
        result = w.double().sqrt() * score
        dtype = torch.promote_types(z.dtype, torch.float32)
        steps = 2 * (4 + min(x.abs().max().item() if z.numel() else 0.0, 88)) + 8
        return result, steps * unit_roundoff(dtype) * result.abs() + torch.finfo(dtype).tiny

    @pytest.mark.parametrize("shape", [(9, 5), (9, 600), (9, 4, 3)])
    def test_a_draw_does_not_depend_on_the_batch(self, shape, dtype, device, simd):
        inputs = self.inputs(shape, dtype, device)
        self.check_cuts(inputs)
        self.check_counters(inputs)

    def test_a_label_is_the_same_for_every_dtype(self, device, simd):
        z = torch.randn(300, 100, device=device).bfloat16()
        exact = sigmoid_sample(z.double(), torch.ones_like(z).double(), 3) < 0
        for x in (z, z.float()):
            assert torch.equal(sigmoid_sample(x, torch.ones_like(x), 3) < 0, exact)

    def test_a_nan_reaches_only_its_output(self, device, simd):
        inputs = self.inputs((50,), torch.float32, device)
        inputs["z"][7] = math.nan
        found = self.kernel(**inputs).isnan()
        assert found[7] and found.sum() == 1


def test_labels_come_in_the_frequencies_of_the_model(device):
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64, device=device)
    draws = 20000
    z = logits.expand(draws, 7).contiguous()
    ones = (sigmoid_sample(z, torch.ones_like(z), seed=1) < 0).double().mean(0)
    p = torch.sigmoid(logits)
    assert ((ones - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()
