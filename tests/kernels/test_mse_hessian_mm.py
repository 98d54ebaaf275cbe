"""mse_hessian_mm against the second derivative of the loss in float64."""

import torch
import torch.nn.functional as F
from bounds import unit_roundoff
from element_outputs import ElementProduct

from curvext.kernels import mse_hessian_mm


class TestMseHessianMm(ElementProduct):
    name = "mse_hessian_mm"

    def oracle(self, z, u, w):
        curvature = 2.0 * torch.ones_like(z.double())
        result = w.double() * curvature * u.double()
        dtype = torch.promote_types(z.dtype, torch.float32)
        steps = 4
        return result, steps * unit_roundoff(dtype) * result.abs() + torch.finfo(dtype).tiny


def test_it_is_the_hessian_of_the_loss(device):
    z, u = torch.randn(2, 6, dtype=torch.float64, device=device)
    hessian = torch.autograd.functional.hessian(
        lambda z: F.mse_loss(z, torch.full_like(z, 0.3), reduction="sum"), z
    )
    got = mse_hessian_mm(z, u[None], torch.ones_like(z))[0]
    torch.testing.assert_close(got, hessian @ u, rtol=1e-12, atol=1e-12)
