"""How many directions a matrix has: effective rank, and the dimension of the null space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.quadrature import quadrature
from curvext.algorithms.together import together
from curvext.arguments import as_choice, as_number
from curvext.results import Estimate


@together
def effective_rank(
    A: SymmetricOperator,
    kind: str = "entropy",
    probes: int = 10,
    steps: int = 80,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    """How many directions carry the matrix, by one of three definitions, between 1 and P.

        "entropy"         exp(−Σ p_i ln p_i),   p_i = |λ_i| / Σ|λ|     (Roy & Vetterli 2007)
        "participation"   (Σ|λ|)² / Σ λ²,       for a PSD matrix (tr A)² / ‖A‖_F²
        "stable"          Σ λ² / max λ² = ‖A‖_F² / ‖A‖₂²               (Rudelson & Vershynin 2007)

    They fall in this order: the entropy still sees a wide bulk of small eigenvalues, the stable rank
    hardly anything but the outliers. All are 0 for the zero matrix.

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        kind: "entropy", "participation" or "stable".
        probes, steps, seed: of the stochastic Lanczos quadrature, see :func:`curvext.spectral_density`.
        progress: show a bar over products (needs tqdm).

    Returns:
        An :class:`Estimate`; the standard error is the jackknife's over the probes. Exact, with error 0, where
        P ≤ probes · steps and P ≤ 1024. For "stable" the largest node stands for ‖A‖₂.

    Raises:
        TypeError: A lacks an attribute.
        ValueError: an argument is out of range, A is not square or 0 x 0, or returns nan or inf.

    Cost: probes · steps products, or P.

    Source: Roy, Vetterli (2007), The effective rank; Rudelson, Vershynin (2007), Sampling from large matrices.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss()
        >>> G = cx.GGNOperator(model, loss, (torch.eye(3), torch.zeros(3, 1)))
        >>> print(cx.effective_rank(G))
        3 exactly (3 products)
    """
    kind = as_choice("effective_rank: kind", kind, _KINDS)
    products = Products(A, "effective_rank")
    rule = quadrature(products, probes, steps, seed, progress)
    most = rule.nodes[rule.weights > 0].abs().max()
    if most == 0:
        zero = torch.zeros((), dtype=products.working, device=products.device)
        return Estimate(zero, zero, products.count)
    sums = [
        rule.by_probe(lambda t: (t / most).abs()),
        rule.by_probe(lambda t: torch.special.entr((t / most).abs())),
        rule.by_probe(lambda t: (t / most).square()),
    ]
    rank = _KINDS[kind]
    value, error = rule.jackknife(torch.stack(sums, 1), lambda mean: rank(mean, rule.size))
    return _estimate(value, error, products, len(sums[0]))


#: from the means over eigenvalues of x, −x ln x and x² of x = |λ| / max|λ|, and P
_KINDS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "entropy": lambda m, P: P * m[..., 0] * torch.exp(m[..., 1] / m[..., 0]),
    "participation": lambda m, P: P * m[..., 0] ** 2 / m[..., 2],
    "stable": lambda m, P: P * m[..., 2],
}


@together
def null_space_dimension(
    A: SymmetricOperator,
    tol: float | None = None,
    probes: int = 10,
    steps: int = 80,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    """How many eigenvalues are zero: |λ| ≤ tol · max|λ|, counted by stochastic Lanczos quadrature.

        dim ≈ P · Σ weights of the nodes with |θ| ≤ tol · max|θ|

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        tol: what counts as zero, relative to the largest eigenvalue in magnitude; None for √eps of A's dtype
            (1.5e-8 in float64, 3.5e-4 in float32).
        probes, steps, seed: of the quadrature, see :func:`curvext.spectral_density`.
        progress: show a bar over products (needs tqdm).

    Returns:
        An :class:`Estimate`, rounded to no integer. Its standard error adds to the spread over the probes the weight of
        those nodes of which Lanczos cannot say yet on which side of the tolerance they are: where that is much, take
        more ``steps``. Where the spectrum runs on to zero without a gap, as the bulk of a network's does, the count
        depends on ``tol``. Exact, with error 0, where P ≤ probes · steps and P ≤ 1024.

    Raises:
        TypeError: A lacks an attribute.
        ValueError: an argument is out of range, A is not square or 0 x 0, or returns nan or inf.

    Cost: probes · steps products, or P.

    Source: Ubaru, Saad (2016), Fast methods for estimating the numerical rank of large matrices.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss()
        >>> E = cx.EmpiricalFisherOperator(model, loss, (torch.eye(3)[:1], torch.zeros(1, 1)))
        >>> print(cx.null_space_dimension(E))  # one sample, three parameters
        2 exactly (3 products)
    """
    products = Products(A, "null_space_dimension")
    if tol is None:
        tol = torch.finfo(products.dtype).eps ** 0.5
    tol = as_number("null_space_dimension: tol", tol, "0 <= tol < 1", lambda t: 0 <= t < 1)
    rule = quadrature(products, probes, steps, seed, progress)
    sizes = rule.nodes.abs()
    bound = tol * sizes[rule.weights > 0].max()
    inside = torch.where(sizes <= bound, rule.weights, 0.0).sum(1)
    # a node may stand for eigenvalues as far away as its error
    unsettled = (sizes - rule.errors <= bound) != (sizes + rule.errors <= bound)
    undecided = torch.where(unsettled, rule.weights, 0.0).sum(1).mean()
    value, error = rule.jackknife(inside, lambda mean: mean)
    return _estimate(
        rule.size * value,
        rule.size * (error.square() + undecided.square()).sqrt(),
        products,
        len(inside),
    )


def _estimate(value: Tensor, error: Tensor, products: Products, probes: int) -> Estimate:
    return Estimate(
        value.to(products.device, products.working),
        error.to(products.device, products.working),
        products.count,
        math.inf if float(error) == 0 else probes - 1,
    )
