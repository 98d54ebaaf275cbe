"""softmax_root_t_mm against the dense root in float64, and as the transpose of softmax_root_mm."""

import torch
from softmax_outputs import SoftmaxProduct, rounding_steps, underflow

from curvext.kernels import softmax_root_mm, softmax_root_t_mm


class TestSoftmaxRootTMm(SoftmaxProduct):
    name = "softmax_root_t_mm"

    def oracle(self, z, u, w, dim):
        """sqrt(w p_i) sum over j of p_j (u_i - u_j): differences alone, so nothing cancels."""
        back = dim % z.dim() + 1
        logits, u = z.double().movedim(dim, -1), u.double().movedim(back, -1)
        p = torch.softmax(logits, -1)
        scale = (w.double()[..., None] * p).sqrt()
        result = scale * (p[..., None, :] * (u[..., :, None] - u[..., None, :])).sum(-1)
        top = logits.argmax(-1, keepdim=True).expand(*u.shape[:-1], 1)
        d = (u - u.gather(-1, top)).abs()
        magnitude = scale * (d + (p * d).sum(-1, keepdim=True))
        # the root of a p that counts as 0
        lost = underflow(z, dim) ** 0.5 * d
        bound = rounding_steps(z, dim) * magnitude + lost + underflow(z, dim)
        return result.movedim(-1, back), bound.movedim(-1, back)


def test_it_is_the_transpose_of_the_root(device):
    z = 3 * torch.randn(4, 70, dtype=torch.float64, device=device)
    w = torch.rand(4, dtype=torch.float64, device=device)
    u, v = torch.randn(2, 1, 4, 70, dtype=torch.float64, device=device)
    left = (u * softmax_root_mm(z, v, w)).sum()
    right = (softmax_root_t_mm(z, u, w) * v).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
