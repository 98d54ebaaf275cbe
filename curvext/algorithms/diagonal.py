"""The diagonal of an operator from products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.leave_one_out import mean_of_left_out, pairs, sketch
from curvext.algorithms.probes import (
    Probes,
    basis,
    blocks,
    check_finite,
)
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.together import together
from curvext.arguments import as_choice, as_integer
from curvext.progress import Progress
from curvext.results import Estimate


@together
def diagonal(
    A: SymmetricOperator,
    method: str = "hutchinson",
    probes: int = 60,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> Estimate:
    """The diagonal of a symmetric operator, each entry with its standard error.

        "hutchinson"   diag A ≈ (1/m) Σ_i z_i ⊙ A z_i,   z_i random signs
        "xdiag"        the mean over i of diag QQᵀA + z_i ⊙ (I − QQᵀ) A z_i,   Q = orth(A Z) without column i

    An entry's variance under Hutchinson's estimator is Σ_{j≠i} A_ij² / m: exact for a diagonal matrix, poor where a
    row's weight lies off the diagonal. XDiag takes the leading directions of A exactly, which pays where
    eigenvalues fall off quickly.

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        method: "hutchinson" or "xdiag".
        probes: the budget of products m: at most so many vectors are multiplied with A. XDiag gives half of them
            to its probes and half to A Q. P of them or more give the exact diagonal, from P columns of the identity.
        seed: of the probes, which are the same on every device and for every sharding.
        progress: show a bar over blocks of products (needs tqdm).
        checkpoint: a path. With one, vectors are multiplied one at a time and a state is written there after each
            product; an interrupted call that is made again with the same arguments goes on from it.

    Returns:
        An :class:`Estimate` of tensors ``[P]``, summed in float64. The standard error is 0 where P products gave the
        diagonal exactly, and inf where a single probe says nothing about its spread. XDiag is exact to
        rounding for a rank below probes // 2.

    Raises:
        TypeError: A lacks an attribute.
        ValueError: A is not square or returns nan or inf, ``method`` is unknown, or ``probes`` is less than
            1 ("hutchinson") or 2 ("xdiag"); or the state at ``checkpoint`` is of another run or damaged.
        OSError: that state cannot be read or written.

    Cost:
        ``probes`` products or fewer; O(P) memory ("hutchinson") or O(P · probes).

    Source:
        Bekas, Kokiopoulou, Saad (2007); Epperly, Tropp, Webber (2024), XTrace, section 5 on XDiag.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> H = cx.HessianOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> cx.diagonal(H).value
        tensor([1., 1.])
    """
    least, estimate, samples = _METHODS[as_choice("diagonal: method", method, _METHODS)]
    products = Products(A, "diagonal", sharded=True)
    probes = as_integer("diagonal: probes", probes, least, why=f"for method={method!r}")
    stream = Probes(products, seed)
    state = Checkpoint(checkpoint, products, method=method, probes=probes, seed=seed)
    with Progress(progress, min(probes, products.size), "diagonal") as bar:
        if products.size <= probes:
            value, error = _by_basis(products, bar)
            degrees = math.inf
        else:
            value, error = estimate(products, probes, stream, bar, state)
            degrees = samples(probes) - 1
    check_finite(products, value, local=True)
    return Estimate(value.to(products.working), error.to(products.working), products.count, degrees)


Answer = tuple[Tensor, Tensor]  # values and standard errors, float64, [P_r]


def _by_basis(products: Products, bar: Progress) -> Answer:
    value = torch.zeros(products.vectors.local, dtype=torch.float64, device=products.device)
    for run in blocks(products.size):
        columns = basis(products, run)
        value += (columns * products.block(columns)).double().sum(1)
        bar.to(products.count)
    return value, torch.zeros_like(value)


def _hutchinson(
    products: Products, count: int, probes: Probes, bar: Progress, state: Checkpoint
) -> Answer:
    spread = Spread(products)
    spread.restore(state)
    probes.skip_signs(spread.count)
    for run in blocks(count, state)[spread.count :]:
        z = probes.signs(len(run))
        spread.add((z * products.block(z)).double())
        spread.save(state)
        bar.to(products.count)
    return spread.mean, spread.standard_error()


def _xdiag(
    products: Products, count: int, probes: Probes, bar: Progress, state: Checkpoint
) -> Answer:
    s = sketch(products, probes.signs(count // 2), bar, state)
    Z, Q, AQ = s.probes, s.basis, s.basis_image
    k = Z.shape[1]
    # of A z_i what Q has from z_i itself goes back to the part that is sampled
    alone = Q @ (s.lost * (s.lost * s.coordinates).sum(0))
    samples = Z * (s.image - Q @ s.coordinates + alone) - (Q @ s.lost) * (AQ @ s.lost)
    samples = (samples + (Q * AQ).sum(1, keepdim=True)).T

    def step(i: Tensor, j: Tensor) -> Tensor:
        """How the estimates by probes i change when the range loses what only probes j gave, ``[P, n]``."""
        d = s.also_lost(i, j)
        return (Q @ d) * (AQ @ d - Z[:, i] * (d * s.coordinates[:, i]).sum(0))

    shared = torch.zeros_like(samples[0])
    for i, j in (pairs(k, n, Z.device) for n in range(k * s.full)):
        shared += (step(i, j) * step(j, i)).sum(1)
    return mean_of_left_out(samples, shared / max(1, k * (k - 1) // 2))


class Spread:
    """Running mean and standard error of each entry, over samples that arrive in blocks."""

    def __init__(self, products: Products) -> None:
        self._products = products
        self.mean = torch.zeros(products.vectors.local, dtype=torch.float64, device=products.device)
        self._squares = torch.zeros_like(self.mean)
        #: samples so far
        self.count = 0

    def save(self, state: Checkpoint) -> None:
        """Writes what is known so far."""
        if not state:
            return
        rows = torch.stack([self.mean, self._squares])
        check_finite(self._products, rows.T, local=True)
        state.save({"count": self.count}, {"mean and squares": rows})

    def restore(self, state: Checkpoint) -> None:
        """Goes on from what a checkpoint has."""
        rows = state.rows("mean and squares")
        if rows is not None:
            self.mean, self._squares = rows.unbind(0)
            self.count = int(state.numbers["count"])

    def add(self, samples: Tensor) -> None:
        """Adds samples ``[P, K]`` (Chan, Golub & LeVeque 1983: sums of squares about the mean, merged)."""
        more = samples.shape[1]
        here = samples.mean(1)
        step = here - self.mean
        both = self.count + more
        self._squares += (samples - here.unsqueeze(1)).square().sum(1)
        self._squares += step.square() * (self.count * more / both)
        self.mean = self.mean + step * (more / both)
        self.count = both

    def standard_error(self) -> Tensor:
        """The standard error of the mean, ``[P]``; inf for one sample."""
        if self.count == 1:
            return torch.full_like(self.mean, torch.inf)
        return (self._squares / (self.count * (self.count - 1))).sqrt()


#: the least budget, the estimator, and the number of samples behind its error for a given budget
_METHODS: dict[
    str,
    tuple[
        int, Callable[[Products, int, Probes, Progress, Checkpoint], Answer], Callable[[int], int]
    ],
] = {
    "hutchinson": (1, _hutchinson, lambda m: m),
    "xdiag": (2, _xdiag, lambda m: m // 2),
}
