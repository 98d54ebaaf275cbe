"""softmax_residual against autograd of the cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F
from bounds import runs_cuda_sources, unit_roundoff
from outputs import without
from softmax_outputs import SoftmaxKernel, certainty, rounding_steps, underflow

from curvext import kernels
from curvext.kernels import softmax_residual


class Residual(SoftmaxKernel):
    name = "softmax_residual"
    has_vectors = False
    fixed = ("w",)

    def oracle(self, z, target, w, spread, dim):
        """w p - t, and at the likeliest class (w - t) - w (1 - p), so that nothing cancels."""
        w = w.double().unsqueeze(-1)
        p, miss = certainty(z.movedim(dim, -1))
        if target.dtype == torch.int64:
            even = p.new_zeros(p.shape[-1]) if spread is None else spread.double()
            here = F.one_hot(target.clamp(0, p.shape[-1] - 1), p.shape[-1])
            mass = even + here * (w - even.sum())
            off = (w - even.sum()) * (1 - here) + even.sum() - even  # w - t
        else:
            mass = target.double().movedim(dim, -1)
            off = w - mass
        sure = p > 0.5
        result = torch.where(sure, off - w * miss, w * p - mass)
        magnitude = torch.where(sure, off.abs() + w * miss, w * p + mass.abs())
        if spread is not None:
            magnitude = magnitude + even.sum()
        bound = rounding_steps(z, dim) * magnitude + underflow(z, dim)
        return result.movedim(-1, dim), bound.movedim(-1, dim)


class TestSoftmaxResidualOfIndices(Residual):
    bad_calls = (
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target has shape \[3\]"),
        ({"target": torch.zeros(2, dtype=torch.int32)}, TypeError, "target has dtype"),
        ({"spread": torch.zeros(2)}, ValueError, r"spread has shape \[2\], expected \[3\]"),
        ({"spread": torch.zeros(3).double()}, TypeError, "spread has dtype"),
    )

    def inputs(self, shape, dim, dtype, device="cpu", vectors=2, scale=3.0):
        z = self.logits(shape, dtype, device, scale)
        target = torch.randint(max(1, shape[dim]), without(z, dim)).to(device)
        if scale < 1 and z.dim() == 2:
            target = torch.arange(len(target), device=device)  # the certain class is the label
        return {"z": z, "target": target, "w": self.weights(z, dim), "spread": None, "dim": dim}

    def test_an_index_outside_the_classes_is_allowed_where_the_weight_is_zero(self, device):
        inputs = self.inputs((4, 5), 1, torch.float32, device)
        inputs["w"][1] = 0
        inputs["target"][1] = -100
        assert (self.kernel(**inputs)[1] == 0).all()

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (4, 2000)])
    @pytest.mark.parametrize("above", [False, True])
    def test_an_index_outside_the_classes_is_refused_and_on_cuda_gives_nan(
        self, above, shape, device
    ):
        index = shape[1] if above else -1
        inputs = self.inputs(shape, 1, torch.float32, device)
        inputs["target"][2] = index
        message = f"softmax_residual: .*the index {index} .* expected 0 to {shape[1] - 1}"
        with kernels.use_reference(), pytest.raises(ValueError, match=message):
            self.kernel(**inputs)
        if runs_cuda_sources(inputs["z"]):
            found = self.kernel(**inputs).isnan()
            assert found[2].all() and found.sum() == found[2].sum()
        else:
            with pytest.raises(ValueError, match=message):
                self.kernel(**inputs)


class TestSoftmaxResidualOfSmoothedIndices(TestSoftmaxResidualOfIndices):
    fixed = ("w", "spread")

    def inputs(self, shape, dim, dtype, device="cpu", vectors=2, scale=3.0):
        inputs = super().inputs(shape, dim, dtype, device, vectors, scale)
        classes = shape[dim]
        spread = torch.rand(classes, dtype=torch.float64) * (0.2 / max(1, classes))
        return inputs | {"spread": spread.to(device, dtype)}


class TestSoftmaxResidualOfProbabilities(Residual):
    fixed = ("target", "w")
    bad_calls = (
        (
            {"target": torch.zeros(2, 2)},
            ValueError,
            r"target has shape \[2, 2\], expected \[2, 3\]",
        ),
        ({"target": torch.zeros(2, 3).double()}, TypeError, "target has dtype"),
        ({"spread": torch.zeros(3)}, ValueError, "spread is given beside the mass of each class"),
    )

    def inputs(self, shape, dim, dtype, device="cpu", vectors=2, scale=3.0):
        z = self.logits(shape, dtype, device, scale)
        target = torch.softmax(torch.randn(shape, dtype=torch.float64), dim).to(device, dtype)
        if scale < 1 and z.dim() == 2:
            target = torch.eye(len(z), dtype=dtype, device=device)
        # the mass of the target as the kernel is given it
        w = target.double().sum(dim).to(torch.promote_types(dtype, torch.float32))
        return {"z": z, "target": target, "w": w, "spread": None, "dim": dim}

    def error_of_the_likeliest(self, inputs):
        """(w - t) - w (1 - p) is rounded as w is, however small p and t are."""
        z, w, dim = inputs["z"], inputs["w"], inputs["dim"]
        there = torch.zeros_like(z, dtype=torch.float64)
        there.scatter_(dim, z.argmax(dim, keepdim=True), 1.0)
        u = unit_roundoff(torch.promote_types(z.dtype, torch.float32))
        return 4 * u * w.double().unsqueeze(dim) * there


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_is_the_gradient_of_the_cross_entropy(smoothing, device):
    z = torch.randn(4, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.randint(6, (4, 5), device=device)
    target[0, 2] = -100
    loss = F.cross_entropy(z, target, reduction="sum", label_smoothing=smoothing)
    (expected,) = torch.autograd.grad(loss, z)
    w = (target != -100).double()
    spread = torch.full((6,), smoothing / 6, dtype=torch.float64, device=device)
    torch.testing.assert_close(softmax_residual(z.detach(), target, w, spread, 1), expected)
    if smoothing == 0:
        torch.testing.assert_close(softmax_residual(z.detach(), target, w, dim=1), expected)


def test_its_gradient_is_the_output_hessian_twice_over(device):
    inputs = TestSoftmaxResidualOfSmoothedIndices().inputs((3, 5), 1, torch.float64, device)
    residual = lambda z: softmax_residual(**(inputs | {"z": z}))  # noqa: E731
    assert torch.autograd.gradcheck(residual, inputs["z"].requires_grad_())
