"""softmax_root_mm against the dense root in float64, whose square is the Hessian of the cross-entropy."""

import torch
from softmax_outputs import SoftmaxProduct, certainty, rounding_steps, underflow

from curvext.kernels import softmax_root_mm


def dense_root(z, w):
    """S = sqrt(w) (diag(sqrt p) - p sqrt(p)^T) over the last dimension, entry by entry, and 1 - p as a sum."""
    p, miss = certainty(z)
    q = p.sqrt()
    root = -p[..., :, None] * q[..., None, :]
    root = torch.diagonal_scatter(root, q * miss, dim1=-2, dim2=-1)
    return w.double().sqrt()[..., None, None] * root


class TestSoftmaxRootMm(SoftmaxProduct):
    name = "softmax_root_mm"
    vectors = "v"

    def oracle(self, z, v, w, dim):
        back = dim % z.dim() + 1
        S = dense_root(z.movedim(dim, -1), w)
        v = v.double().movedim(back, -1)[..., None]
        result, magnitude = (S @ v)[..., 0], (S.abs() @ v.abs())[..., 0]
        # beside the likeliest class v_i is met whole, not as (1 - p_i) v_i with 1 - p_i >= 1/2
        steps = 3 * rounding_steps(z, dim)
        bound = steps * magnitude.movedim(-1, back) + underflow(z, dim) ** 0.5 * z.shape[dim]
        return result.movedim(-1, back), bound


def test_the_dense_root_squares_to_the_hessian_of_the_cross_entropy():
    z = torch.randn(5, dtype=torch.float64)
    S = dense_root(z, torch.tensor(1.0))
    hessian = torch.autograd.functional.hessian(
        lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(2)), z
    )
    torch.testing.assert_close(S @ S.T, hessian, rtol=1e-12, atol=1e-12)


def test_its_columns_square_to_the_hessian_for_many_classes(device):
    z = torch.randn(3, 70, dtype=torch.float64, device=device)
    w = torch.rand(3, dtype=torch.float64, device=device)
    units = torch.eye(70, dtype=torch.float64, device=device)[:, None].expand(70, 3, 70)
    S = softmax_root_mm(z, units, w)  # [column, position, class]
    p = torch.softmax(z, 1)
    hessian = w[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    torch.testing.assert_close(torch.einsum("kmc,kmd->mcd", S, S), hessian, rtol=1e-12, atol=1e-14)
