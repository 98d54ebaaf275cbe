"""softmax_hessian_mm against the dense C x C output Hessian in float64, by autograd of the cross-entropy."""

import torch
from softmax_outputs import SoftmaxProduct, rounding_steps, underflow


class TestSoftmaxHessianMm(SoftmaxProduct):
    name = "softmax_hessian_mm"

    def oracle(self, z, u, w, dim):
        """Sum over j of p_i p_j (u_i - u_j): differences alone, so nothing cancels."""
        logits, w = z.double().movedim(dim, -1), w.double()
        u = u.double().movedim(dim % z.dim() + 1, -1)
        p = torch.softmax(logits, -1)
        difference = u[..., :, None] - u[..., None, :]
        scale = w[..., None] * p
        result = scale * (p[..., None, :] * difference).sum(-1)
        # Differences to the likeliest class are what the kernel forms.
        top = logits.argmax(-1, keepdim=True).expand(*u.shape[:-1], 1)
        d = (u - u.gather(-1, top)).abs()
        magnitude = scale.abs() * (d + (p * d).sum(-1, keepdim=True))
        back = dim % z.dim() + 1
        bound = rounding_steps(z, dim) * magnitude.movedim(-1, back) + underflow(z, dim)
        return result.movedim(-1, back), bound


def test_the_oracle_is_the_hessian_of_the_cross_entropy():
    test = TestSoftmaxHessianMm()
    inputs = test.inputs((5,), 0, torch.float64, vectors=1) | {"w": torch.tensor(1.0)}
    hessian = torch.autograd.functional.hessian(
        lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(2)), inputs["z"]
    )
    expected, _ = test.oracle(**inputs)
    torch.testing.assert_close(hessian @ inputs["u"][0], expected[0], rtol=1e-12, atol=1e-12)
