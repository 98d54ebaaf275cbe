"""The density of an operator's eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

import torch
from torch import Tensor

from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.quadrature import quadrature
from curvext.algorithms.together import together
from curvext.arguments import as_choice, as_number, check_dense
from curvext.results import Density

#: points of the default grid
_POINTS = 1001
#: the moments that come with a density: 0 .. 4
_MOMENTS = 5


@together
def spectral_density(
    A: SymmetricOperator,
    probes: int = 10,
    steps: int = 80,
    seed: int = 0,
    grid: Tensor | None = None,
    kernel: str = "gaussian",
    width: float | None = None,
    reorthogonalise: bool = True,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> Density:
    """The density of the eigenvalues of a symmetric operator, by stochastic Lanczos quadrature.

        φ(t) = (1/P) Σ_i K(t − λ_i) ≈ (1/m) Σ_j Σ_s w_js K(t − θ_js)

    θ_j and w_j are nodes and weights of the Gauss quadrature of probe j: the eigenvalues of its Lanczos
    matrix T and the squares of their eigenvectors' first components. The rule of one probe is exact for
    polynomials of degree 2·steps − 1 in A. The spread over probes gives the standard errors; they do not see what
    too few steps leave blurred.

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        probes: how many random vectors of signs. Errors fall as 1/√probes.
        steps: Lanczos steps for each. More resolve finer detail.
        seed: of the probes, drawn from a generator of their own.
        grid: increasing points t, ``[n]``, at least 2; None for 1001 points from the least to the largest node and a
            margin of 5 widths ("gaussian") or 20 ("lorentz").
        kernel: "gaussian", K of standard deviation ``width``; or "lorentz", K of half width at half maximum ``width``.
        width: None for a hundredth of the range of the nodes.
        reorthogonalise: keep all Lanczos vectors orthogonal. Without, P · steps numbers for each probe need not be
            held, and copies of converged eigenvalues share their weight.
        progress: show a bar over products (needs tqdm).
        checkpoint: a path. A state is written there after each probe, and an interrupted call that is made again with
            the same arguments goes on from it.

    Returns:
        A :class:`Density`. Its value at a grid point is the mean of φ over the cell that reaches half way to its
        neighbours, so ``torch.trapezoid(density, grid)`` is the mass on the grid to rounding, however coarse that is: 1
        on the default grid, at whose ends K is cut and scaled to mass 1; the share of the spectrum there on a grid of
        your own. Where P ≤ probes · steps and P ≤ 1024 the matrix is formed by P products and decomposed: nodes are
        then all eigenvalues, and standard errors are 0.

    Raises:
        TypeError: A lacks an attribute; ``grid`` is no tensor.
        ValueError: an argument is out of range, A is not square, or returns nan or inf; or the state at ``checkpoint``
            is of another run or damaged.
        OSError: that state cannot be read or written.

    Cost:
        probes · steps products; P · steps numbers for each probe, of which 1 GiB is held at a time.

    Source:
        Ubaru, Chen, Saad (2017), Fast estimation of tr f(A) via stochastic Lanczos quadrature; Lin, Saad, Yang
        (2016), Approximating spectral densities of large matrices; Ghorbani, Krishnan, Xiao (2019).

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> H = cx.HessianOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> d = cx.spectral_density(H)
        >>> d.nodes, round(float(torch.trapezoid(d.density, d.grid)), 6)
        (tensor([1., 1.], dtype=torch.float64), 1.0)
    """
    products = Products(A, "spectral_density", sharded=True)
    kernel = as_choice("spectral_density: kernel", kernel, _KERNELS)
    if width is not None:
        width = as_number(
            "spectral_density: width", width, "a positive number", lambda w: 0 < w < float("inf")
        )
    points = None if grid is None else _checked(grid)
    rule = quadrature(products, probes, steps, seed, progress, reorthogonalise, checkpoint)
    there = rule.nodes[rule.weights > 0]
    least, most = float(there.min()), float(there.max())
    if width is None:
        width = 0.01 * (most - least or abs(most) or 1.0)
    cumulative, margin = _KERNELS[kernel]
    closed = points is None
    if points is None:
        points = torch.linspace(
            least - margin * width,
            most + margin * width,
            _POINTS,
            dtype=torch.float64,
            device="cpu",
        )
    by_probe = torch.stack(
        [
            _broadened(n[w > 0], w[w > 0], points, lambda x: cumulative(x / width), closed)
            for n, w in zip(rule.nodes, rule.weights, strict=True)
        ]
    )
    density, standard_error = rule.jackknife(by_probe, lambda mean: mean)
    powers = torch.stack([rule.by_probe(lambda t, k=k: t**k) for k in range(_MOMENTS)], 1)  # type: ignore[misc]
    moments, moment_errors = rule.jackknife(powers, lambda mean: mean)
    order = there.argsort(stable=True)
    return Density(
        points.to(products.device),
        density.to(products.device),
        there[order].to(products.device),
        (rule.weights[rule.weights > 0][order] / len(rule.nodes)).to(products.device),
        standard_error.to(products.device),
        moments.to(products.device),
        moment_errors.to(products.device),
        float(width),
        products.size,
        products.count,
    )


def _broadened(
    nodes: Tensor,
    weights: Tensor,
    grid: Tensor,
    cumulative: Callable[[Tensor], Tensor],
    closed: bool,
) -> Tensor:
    """The mean over each point's cell of Σ w K(t − θ), ``[n]``; ``closed``: K is cut at the ends and has mass 1."""
    edges = torch.cat([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
    # seen from the nearer tail, a difference of small numbers keeps its digits
    offsets = edges - nodes.unsqueeze(1)
    mass = cumulative(-offsets.abs()).mul(torch.where(offsets > 0, -1.0, 1.0))
    steps = mass.diff(dim=1) + (offsets[:, :-1] <= 0).logical_and(offsets[:, 1:] > 0)
    if closed:
        steps = steps / steps.sum(1, keepdim=True)
    return weights @ steps / edges.diff()


def _gaussian(x: Tensor) -> Tensor:
    return torch.special.erfc(-x / 2**0.5) / 2


def _lorentz(x: Tensor) -> Tensor:
    return torch.where(x < 0, torch.atan(-1 / x), torch.pi / 2) / torch.pi


#: the cumulative of the unit kernel for x ≤ 0, and the default grid's margin in widths
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gaussian": (_gaussian, 5.0),
    "lorentz": (_lorentz, 20.0),
}


def _checked(grid: Tensor) -> Tensor:
    check_dense("spectral_density: grid", grid)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(
            f"spectral_density: grid: expected [n] with n >= 2, got {list(grid.shape)}"
        )
    points = grid.detach().to("cpu", torch.float64)
    if not bool(points.isfinite().all() and (points.diff() > 0).all()):
        raise ValueError("spectral_density: grid: expected finite points in increasing order")
    return points
