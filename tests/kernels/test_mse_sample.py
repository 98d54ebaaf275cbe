"""mse_sample: Gaussian residuals by their counters alone, of the variance of the likelihood."""

import math

import pytest
import torch
from bounds import unit_roundoff
from draws import Sampled, uniform
from element_outputs import ElementKernel

from curvext.kernels import mse_sample


def noise(seed, draw, datum, position):
    """Box and Muller's pair in plain arithmetic."""
    pair = position - position % 2
    radius = math.sqrt(-2 * math.log(uniform(seed, draw, datum, pair)))
    angle = 2 * math.pi * uniform(seed, draw, datum, pair + 1)
    return radius * (math.sin(angle) if position % 2 else math.cos(angle))


class TestMseSample(ElementKernel, Sampled):
    name = "mse_sample"

    def inputs(self, shape, dtype, device="cpu", vectors=2):
        z = torch.zeros(shape, device=device, dtype=dtype)
        return {"z": z, "w": self.weights(z), "seed": 5, "draw": 1, "first": 7}

    def oracle(self, z, w, seed, draw, first):
        count = z.shape[0] if z.dim() else 1
        inner = z[0].numel() if z.dim() and count else 1
        values = [noise(seed, draw, first + n, m) for n in range(count) for m in range(inner)]
        drawn = torch.tensor(values, dtype=torch.float64, device=z.device).view(z.shape)
        result = (2 * w.double()).sqrt() * drawn
        dtype = torch.promote_types(z.dtype, torch.float32)
        # the last digits of a sine count beside its whole amplitude
        size = result.abs() + 10 * (2 * w.double()).sqrt() * torch.finfo(torch.float64).eps
        return result, 8 * unit_roundoff(dtype) * size + 1e-14 * (dtype == torch.float64)

    @pytest.mark.parametrize("shape", [(9, 5), (9, 600), (9, 4, 3)])
    def test_a_draw_does_not_depend_on_the_batch(self, shape, dtype, device, simd):
        inputs = self.inputs(shape, dtype, device)
        self.check_cuts(inputs)
        self.check_counters(inputs)


def test_the_residuals_are_normal_and_independent(device):
    z = torch.zeros(20000, 5, dtype=torch.float64, device=device)
    x = mse_sample(z, torch.full_like(z, 0.5), seed=3)  # sqrt(2 w) = 1
    n = x.numel()
    assert x.mean().abs() < 5 / math.sqrt(n)
    assert (x.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)
    assert (x.pow(4).mean() - 3).abs() < 5 * math.sqrt(96 / n)
    assert ((x < 1).double().mean() - 0.841344746).abs() < 5 * math.sqrt(0.1335 / n)
    correlation = x.T @ x / len(x) - torch.eye(5, dtype=x.dtype, device=device)
    assert correlation.abs().max() < 5 * math.sqrt(2 / len(x))
