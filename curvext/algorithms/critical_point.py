"""What kind of point the parameters are at: minimum, maximum, saddle, degenerate, or not critical.

One file because the decision reads the gradient, the spectrum and their errors together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.lanczos import tridiagonalise
from curvext.algorithms.products import Products
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, as_seed, check_risk
from curvext.results import CriticalPoint

#: up to this many parameters the Hessian is formed and decomposed
DENSE_LIMIT = 1000


class Risk(Protocol):
    """What this algorithm needs of a risk; :class:`curvext.EmpiricalRisk` provides it."""

    def gradient(self) -> Tensor:
        """∇L, ``[P]``."""
        ...

    def hessian(self) -> Any:
        """H."""
        ...


@together
def critical_point(
    risk: Risk,
    gradient_tol: float | None = None,
    tol: float | None = None,
    seed: int = 0,
    probes: int = 2,
    steps: int = 30,
    maxiter: int = 400,
    dense_limit: int = DENSE_LIMIT,
    progress: bool = False,
) -> CriticalPoint:
    """Whether the gradient vanishes, and what the eigenvalues of the Hessian say about the point.

        ‖∇L‖ > gradient_tol · ‖H‖              "not critical"
        every λ > 0                            "minimum", a strict one
        every λ < 0                            "maximum"
        some λ < 0 and some λ > 0              "saddle", whatever else is zero
        else, so some λ = 0                    "degenerate": second derivatives do not decide

    λ counts as zero when |λ| ≤ tol · ‖H‖ or when its error bound reaches there.

    Up to ``dense_limit`` parameters H is formed and all eigenvalues are known. Beyond, the two ends of the
    spectrum come from :func:`curvext.eigsh`. Then a saddle is proven, by a vector of negative and one of
    positive curvature. A minimum rests on Lanczos having found the smallest eigenvalue, which it does from
    above: evidence and no proof. Eigenvalues near zero inside of the spectrum are not resolved, so at a
    saddle neither their number nor the condition number is known. ``evidence`` says which it was.

    Args:
        risk: a :class:`curvext.EmpiricalRisk`, or an object with ``gradient()`` and ``hessian()``.
        gradient_tol: as above. ‖∇L‖/‖H‖ is the shortest step in the parameters that could undo the
            gradient, so this is a length in their units. None for 1e-6 in float64 and 3e-4 otherwise: of
            a step of √eps the loss itself shows nothing.
        tol: as above, and the tolerance of Lanczos; None for eps^⅔ where H is formed, else √eps.
        seed: of all random vectors.
        probes: random vectors for the share of negative curvature where H is not formed; 0 to leave it out.
        steps: products for each of them.
        maxiter: products of Lanczos at most. What has not converged by then has a larger error bound, and is
            told from zero accordingly.
        dense_limit: form H up to this many parameters, by P products.
        progress: show a bar (needs tqdm).

    Returns:
        CriticalPoint(verdict, gradient_norm, smallest, largest, condition_number, ...).

    Raises:
        TypeError: ``risk`` has no ``gradient`` or no ``hessian``.
        ValueError: an argument is out of range.

    Cost: P products, or those of eigsh and ``probes · steps`` more.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> risk = cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> cx.critical_point(risk).verdict
        'minimum'
    """
    check_risk("critical_point", risk, ("gradient", "hessian"))
    if gradient_tol is not None:
        gradient_tol = as_number(
            "critical_point: gradient_tol", gradient_tol, "a number >= 0", lambda x: x >= 0
        )
    if tol is not None:
        tol = as_number("critical_point: tol", tol, "a number >= 0", lambda x: x >= 0)
    probes = as_integer("critical_point: probes", probes, 0)
    steps = as_integer("critical_point: steps", steps, 1)
    maxiter = as_integer("critical_point: maxiter", maxiter, 1)
    dense_limit = as_integer("critical_point: dense_limit", dense_limit, 0)
    seed = as_seed("critical_point: seed", seed)
    gradient, hessian = risk.gradient().detach(), risk.hessian()
    products = Products(hessian, "critical_point", like=gradient)
    if gradient.shape != (products.size,):
        raise ValueError(
            f"critical_point: risk.gradient() has shape {list(gradient.shape)} and risk.hessian() "
            f"{products.size} rows"
        )
    norm = float(gradient.double().norm())
    if gradient_tol is None:
        gradient_tol = 1e-6 if products.dtype is torch.float64 else 3e-4
    eps = torch.finfo(products.dtype).eps
    if products.size <= max(dense_limit, 1):  # a single eigenvalue has no two ends
        ends = _all(products, eps ** (2 / 3) if tol is None else tol)
    else:
        tol = eps**0.5 if tol is None else tol
        ends = _extremes(products, tol, seed, probes, steps, maxiter, progress)
    threshold = gradient_tol * ends.scale
    kind, reason = ends.kind()
    if norm > threshold:
        kind = "not critical"
        reason = f"the gradient is longer than {threshold:.1e}; of H {reason}"
    return CriticalPoint(
        verdict=kind,
        gradient_norm=norm,
        smallest=ends.smallest,
        largest=ends.largest,
        condition_number=ends.condition(),
        negative_share=ends.negative_share,
        negative_fraction=ends.negative_fraction,
        gradient_tolerance=threshold,
        zero=ends.zero,
        smallest_error=ends.errors[0],
        largest_error=ends.errors[1],
        direction=ends.direction,
        exact=ends.values is not None,
        converged=ends.converged,
        products=products.count,
        evidence=reason,
    )


@dataclass(frozen=True)
class _Ends:
    """What is known of the spectrum of H."""

    smallest: float
    largest: float
    errors: tuple[float, float]
    zero: float  # up to here an eigenvalue counts as zero
    direction: Tensor
    converged: bool
    negative_share: float
    negative_fraction: float
    values: Tensor | None  # all of them, where they are known

    @property
    def scale(self) -> float:
        """‖H‖."""
        return max(abs(self.smallest), abs(self.largest))

    def kind(self) -> tuple[str, str]:
        """The verdict on H alone, and what it rests on."""
        low, high, zero = self.smallest, self.largest, self.zero
        if self.values is not None:
            how = f"all {len(self.values)} eigenvalues are known"
        else:
            state = "" if self.converged else ", which has NOT converged"
            how = f"the ends of the spectrum are known from Lanczos{state}"
        if low < -zero and high > zero:
            proof = "" if self.values is not None else ", and both signs are proven by a vector"
            return "saddle", how + proof
        if low > zero + self.errors[0]:
            return "minimum", f"{how}: none is below {low:+.1e} ± {self.errors[0]:.0e}"
        if high < -zero - self.errors[1]:
            return "maximum", f"{how}: none is above {high:+.1e} ± {self.errors[1]:.0e}"
        end, error = (low, self.errors[0]) if high > zero else (high, self.errors[1])
        told = f"{end:+.1e} ± {max(error, zero):.0e} cannot be told from zero"
        return "degenerate", f"{how}: {told}"

    def condition(self) -> float:
        """max|λ| / min|λ|; inf where the smallest is zero, nan where it is inside and unknown."""
        if self.values is not None:
            least = float(self.values.abs().min())
            return self.scale / least if least > self.zero else math.inf
        kind = self.kind()[0]
        if kind == "saddle":
            return math.nan
        least = min(abs(self.smallest), abs(self.largest))
        return math.inf if kind == "degenerate" else self.scale / least


def _all(products: Products, tol: float) -> _Ends:
    """From every eigenvalue of the matrix, formed by P products."""
    values, vectors = torch.linalg.eigh(products.dense())
    smallest, largest = float(values[0]), float(values[-1])
    zero = tol * max(abs(smallest), abs(largest))
    negative, share = _negative(values, torch.ones_like(values), zero)
    direction = vectors[:, 0].to(products.working)
    return _Ends(
        smallest, largest, (0.0, 0.0), zero, direction, True, share, negative, values.cpu()
    )


def _extremes(
    products: Products,
    tol: float,
    seed: int,
    probes: int,
    steps: int,
    maxiter: int,
    progress: bool,
) -> _Ends:
    """From both ends by Lanczos, and a quadrature with random probes for what is between."""
    found = eigsh(products.whole(), 2, "BE", seed, tol, maxiter, progress=progress)
    products.count += found.products
    smallest, largest = (float(v) for v in found.values)
    zero = tol * max(abs(smallest), abs(largest))
    nodes, weights = [torch.zeros(0, device="cpu")], [torch.zeros(0, device="cpu")]
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(probes):
        probe = torch.randn(
            products.size, generator=generator, dtype=products.working, device="cpu"
        )
        start = probe.to(products.device)
        alpha, beta, _ = tridiagonalise(products, start, min(steps, products.size), False)
        T = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, rotation = torch.linalg.eigh(T.cpu())
        nodes.append(values)
        weights.append(rotation[0].square())
    negative, share = _negative(torch.cat(nodes), torch.cat(weights), zero)
    return _Ends(
        smallest,
        largest,
        (float(found.residuals[0]), float(found.residuals[1])),
        zero,
        found.vectors[:, 0].contiguous(),
        found.converged,
        share,
        negative,
        None,
    )


def _negative(values: Tensor, weights: Tensor, zero: float) -> tuple[float, float]:
    """The share of eigenvalues under zero, by number and by magnitude; nan without values."""
    if len(values) == 0:
        return math.nan, math.nan
    below, sizes = values < -zero, weights * values.abs()
    mass = float(sizes.sum())
    by_magnitude = float(sizes[below].sum()) / mass if mass else 0.0
    return float(weights[below].sum() / weights.sum()), by_magnitude
