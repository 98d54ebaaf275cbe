"""sigmoid_hessian_mm against the second derivative of the loss in float64."""

import torch
import torch.nn.functional as F
from bounds import unit_roundoff
from element_outputs import ElementProduct

from curvext.kernels import sigmoid_hessian_mm


class TestSigmoidHessianMm(ElementProduct):
    name = "sigmoid_hessian_mm"

    def oracle(self, z, u, w):
        curvature = torch.exp(F.logsigmoid(z.double()) + F.logsigmoid(-z.double()))
        result = w.double() * curvature * u.double()
        dtype = torch.promote_types(z.dtype, torch.float32)
        steps = 2 * (4 + min(z.double().abs().max().item() if z.numel() else 0.0, 88)) + 8
        return result, steps * unit_roundoff(dtype) * result.abs() + torch.finfo(dtype).tiny


def test_it_is_the_hessian_of_the_loss(device):
    z, u = torch.randn(2, 6, dtype=torch.float64, device=device)
    hessian = torch.autograd.functional.hessian(
        lambda z: F.binary_cross_entropy_with_logits(z, torch.full_like(z, 0.3), reduction="sum"), z
    )
    got = sigmoid_hessian_mm(z, u[None], torch.ones_like(z))[0]
    torch.testing.assert_close(got, hessian @ u, rtol=1e-12, atol=1e-12)


def test_it_keeps_the_curvature_far_from_zero(device, simd):
    z = torch.tensor([80.0, -80.0, 1e4, -1e4], device=device)
    got = sigmoid_hessian_mm(z, torch.ones(1, 4, device=device), torch.ones(4, device=device))[0]
    assert torch.allclose(got[:2].double().log(), torch.tensor(-80.0).double(), atol=1e-5)
    assert (got[2:] == 0).all()  # e^-10000 is no float
