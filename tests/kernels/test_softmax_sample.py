"""softmax_sample: labels by their counters alone, in the frequencies of the model; residuals in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from draws import Sampled, uniform
from softmax_outputs import SoftmaxKernel, certainty, rounding_steps, underflow

from curvext import reference
from curvext.kernels import softmax_sample


def drawn_labels(z, w, seed, draw, first, dim):
    """The labels of a call: the one class whose residual is negative in float64, at weight 1."""
    one = torch.ones(w.shape, dtype=torch.float64, device=z.device)
    return reference.softmax_sample(z.double(), one, seed, draw, first, dim).argmin(dim)


class TestSoftmaxSample(SoftmaxKernel, Sampled):
    name = "softmax_sample"
    has_vectors = False

    def inputs(self, shape, dim, dtype, device="cpu", vectors=2, scale=3.0):
        z = self.logits(shape, dtype, device, scale)
        return {"z": z, "w": self.weights(z, dim), "seed": 5, "draw": 1, "first": 7, "dim": dim}

    def oracle(self, z, w, seed, draw, first, dim):
        label = drawn_labels(z, w, seed, draw, first, dim)
        root = w.double().sqrt().unsqueeze(-1)
        p, miss = certainty(z.movedim(dim, -1))
        here = F.one_hot(label, z.shape[dim]).bool()
        result = root * torch.where(here, -miss, p)
        magnitude = root * torch.where(here & (p <= 0.5), 1, torch.where(here, miss, p))
        bound = rounding_steps(z, dim) * magnitude + underflow(z, dim)
        return result.movedim(-1, dim), bound.movedim(-1, dim)

    @pytest.mark.parametrize("shape, dim", [((9, 5), 1), ((9, 300), 1), ((9, 5, 40), 1)])
    def test_a_draw_does_not_depend_on_the_batch(self, shape, dim, dtype, device, simd):
        inputs = self.inputs(shape, dim, dtype, device)
        self.check_cuts(inputs)
        self.check_counters(inputs)

    @pytest.mark.parametrize("shape", [(400, 6), (400, 90), (3, 1000, 40)])
    def test_a_draw_does_not_depend_on_dtype_layout_or_instruction_set(self, shape, device, simd):
        z = torch.randn(shape).bfloat16().to(device)
        w = torch.ones(z[:, 0].shape, device=device)
        exact = drawn_labels(z, w, 3, 0, 0, 1)
        turned = z.float().movedim(1, -1).contiguous()
        for x in (z, z.float(), z.double(), turned.movedim(-1, 1)):
            got = softmax_sample(x, w.to(torch.promote_types(x.dtype, torch.float32)), 3, dim=1)
            assert torch.equal(got.argmin(1), exact)


def test_labels_are_those_of_the_race_in_plain_arithmetic():
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    w = torch.ones(4, 3, dtype=torch.float64)
    labels = softmax_sample(z, w, seed=11, draw=2, first=30, dim=1).argmin(1)
    for n in range(4):
        for t in range(3):
            clocks = [
                -math.log1p(-uniform(11, 2, 30 + n, t, c)) / math.exp(z[n, c, t]) for c in range(5)
            ]
            assert labels[n, t] == clocks.index(min(clocks))


@pytest.mark.parametrize("classes", [3, 80])
def test_labels_come_in_the_frequencies_of_the_model(classes, device):
    logits = torch.randn(classes, dtype=torch.float64, device=device)
    draws = 40000
    z = logits.expand(draws, classes).contiguous()
    labels = softmax_sample(z, z.new_ones(draws), seed=1).argmin(1)
    counts = torch.bincount(labels, minlength=classes).double()
    expected = draws * torch.softmax(logits, 0)
    chi_squared = ((counts - expected).square() / expected).sum().item()
    freedom = classes - 1
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


def test_the_expected_square_of_the_score_is_the_output_hessian(device):
    z = torch.randn(1, 4, dtype=torch.float64, device=device).expand(40000, 4).contiguous()
    scores = softmax_sample(z, z.new_full((40000,), 0.7), seed=2)
    p = torch.softmax(z[0], 0)
    hessian = 0.7 * (torch.diag(p) - torch.outer(p, p))
    error = (scores.T @ scores / 40000 - hessian).abs().max()
    assert error < 5 * 0.7 / math.sqrt(40000)
