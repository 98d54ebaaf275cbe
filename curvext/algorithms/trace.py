"""The trace of an operator from products with random vectors."""

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
    multiply,
    representable,
)
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.together import together
from curvext.arguments import as_choice, as_integer
from curvext.progress import Progress
from curvext.results import Estimate


@together
def trace(
    A: SymmetricOperator,
    method: str = "hutchinson",
    probes: int = 60,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> Estimate:
    """The trace of a symmetric operator, with its standard error.

        "hutchinson"   tr A ≈ (1/m) Σ_i z_iᵀ A z_i,   z_i random signs
        "hutch++"      tr A ≈ tr QᵀA Q + the same of (I − QQᵀ) A (I − QQᵀ),   Q = orth(A S)
        "xtrace"       the mean over i of hutch++ with Q from all probes but the i-th, and the i-th as its one probe

    Hutchinson's error falls as 1/√m and is estimated from the spread of its samples. The two others treat
    the leading directions of A exactly, which pays where eigenvalues decay quickly, as those of curvature
    matrices do: the error can fall as 1/m. They are equally valid for indefinite matrices.

    Args:
        A: any curvext operator, or an object with shape, dtype, device, matvec; P×P, symmetric.
        method: "hutchinson", "hutch++" or "xtrace".
        probes: the budget of products m: at most so many vectors are multiplied with A. Hutch++ gives a third of
            them to the sketch A S, a third to A Q and the rest to the residual; XTrace gives half to its probes and
            half to A Q. P of them or more give the exact trace, from P columns of the identity.
        seed: of the probes, which are the same on every device and for every sharding.
        progress: show a bar over blocks of products (needs tqdm).
        checkpoint: a path. With one, vectors are multiplied one at a time and a state is written there after each
            product; an interrupted call that is made again with the same arguments goes on from it.

    Returns:
        An :class:`Estimate` with scalar tensors, summed in float64. The standard error is 0 where P products gave
        the trace exactly, and inf where a single probe says nothing about its spread. Hutch++ is exact to
        rounding for a rank of at most probes // 3, XTrace for a rank below probes // 2: their standard
        errors then are rounding too. Hutchinson's is exact for diagonal matrices.

    Raises:
        TypeError: A lacks an attribute.
        ValueError: A is not square or returns nan or inf, ``method`` is unknown, or ``probes`` is less than
            1 ("hutchinson"), 3 ("hutch++") or 2 ("xtrace"); or the state at ``checkpoint`` is of another run or
            damaged.
        OSError: that state cannot be read or written.

    Cost:
        ``probes`` products or fewer, O(P · probes) memory ("hutchinson": O(P)), O(P · probes²) arithmetic.

    Source:
        Hutchinson (1990); Meyer, Musco, Musco, Woodruff (2021), Hutch++, algorithm 1; Epperly, Tropp, Webber
        (2024), XTrace, algorithm 1 with the normalisation of its section 2.3 and its error estimate.

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> H = cx.HessianOperator(model, loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> print(cx.trace(H))
        2 exactly (2 products)
    """
    method = as_choice("trace: method", method, _METHODS)
    least, estimate, samples = _METHODS[method]
    products = Products(A, "trace", sharded=True)
    probes = as_integer("trace: probes", probes, least, why=f"for method={method!r}")
    stream = Probes(products, seed)
    state = Checkpoint(checkpoint, products, method=method, probes=probes, seed=seed)
    with Progress(progress, min(probes, products.size), "trace") as bar:
        if products.size <= probes:
            value, error = _by_basis(products, bar)
            degrees = math.inf
        else:
            value, error = estimate(products, probes, stream, bar, state)
            degrees = samples(probes) - 1
    check_finite(products, value)
    return Estimate(value.to(products.working), error.to(products.working), products.count, degrees)


Answer = tuple[Tensor, Tensor]  # value and standard error, float64


def _by_basis(products: Products, bar: Progress) -> Answer:
    total = torch.zeros((), dtype=torch.float64, device=products.device)
    for run in blocks(products.size):
        columns = basis(products, run)
        total += products.vectors.inner(columns, products.block(columns)).diagonal().sum()
        bar.to(products.count)
    return total, torch.zeros_like(total)


def _hutchinson(
    products: Products, count: int, probes: Probes, bar: Progress, state: Checkpoint
) -> Answer:
    quadratic = [state.numbers["samples"].to(products.device)] if "samples" in state.numbers else []
    done = sum(map(len, quadratic))
    probes.skip_signs(done)
    for run in blocks(count, state)[done:]:
        z = probes.signs(len(run))
        quadratic.append(_dots(products, z, products.block(z)))
        if state:
            check_finite(products, quadratic[-1])
            state.save({"samples": torch.cat(quadratic)})
        bar.to(products.count)
    return _mean(torch.cat(quadratic))


def _hutchpp(
    products: Products, count: int, probes: Probes, bar: Progress, state: Checkpoint
) -> Answer:
    third = count // 3
    image = multiply(products, probes.normals(third), bar, state, "image")
    rows = state.rows("basis")
    Q = products.vectors.qr(image)[0] if rows is None else rows.T
    if rows is None:  # made anew it may have other signs, while the products below are of this one
        state.save({}, {"basis": Q.T}, append=True)
    image = multiply(products, representable(products, Q), bar, state, "basis_image")
    exact = _dots(products, Q, image).sum()
    rest = probes.signs(count - 2 * third).double()
    outside = representable(products, rest - Q @ products.vectors.inner(Q, rest))
    image = multiply(products, outside, bar, state, "rest")
    value, error = _mean(_dots(products, outside, image))
    return exact + value, error


def _xtrace(
    products: Products, count: int, probes: Probes, bar: Progress, state: Checkpoint
) -> Answer:
    s = sketch(products, probes.normals(count // 2), bar, state)
    H = products.vectors.inner(s.basis, s.basis_image)
    ours = products.vectors.inner(s.basis, s.probes)
    forms, lengths = _dots(products, s.probes, s.image), _dots(products, s.probes, s.probes)

    def by_probe(i: Tensor, *lost: Tensor) -> Tensor:
        """Estimates by probes i ``[n]`` from ranges that lack some orthogonal directions ``[r, n]``."""
        inside = H.diagonal().sum().expand(len(i))
        x, dimension = ours[:, i], torch.full_like(forms[i], products.size - len(H))
        for d in lost:
            inside = inside - (d * (H @ d)).sum(0)
            x = x - d * (d * x).sum(0)
            dimension = dimension + d.square().sum(0)
        # zᵀ A z for the part of each probe outside the range
        outside = forms[i] - 2 * (x * s.coordinates[:, i]).sum(0) + (x * (H @ x)).sum(0)
        # a Gaussian's length carries no information on A: scale each part to its expected length
        return inside + outside * dimension / (lengths[i] - x.square().sum(0))

    every = torch.arange(len(forms), device=forms.device)
    samples = by_probe(every, s.lost)
    shared = []
    for i, j in (pairs(len(samples), n, forms.device) for n in range(len(samples) * s.full)):
        without_j = by_probe(i, s.lost[:, i], s.also_lost(i, j))
        without_i = by_probe(j, s.lost[:, j], s.also_lost(j, i))
        shared.append((samples[i] - without_j) * (samples[j] - without_i))
    return mean_of_left_out(samples, torch.cat(shared).mean() if shared else 0.0)


#: the least budget, the estimator, and the number of samples behind its error for a given budget
_METHODS: dict[
    str,
    tuple[
        int, Callable[[Products, int, Probes, Progress, Checkpoint], Answer], Callable[[int], int]
    ],
] = {
    "hutchinson": (1, _hutchinson, lambda m: m),
    "hutch++": (3, _hutchpp, lambda m: m - 2 * (m // 3)),
    "xtrace": (2, _xtrace, lambda m: m // 2),
}


def _dots(products: Products, V: Tensor, W: Tensor) -> Tensor:
    """vᵢ·wᵢ for all columns ``[P_r, K]``, summed in float64, ``[K]``."""
    return products.vectors.dots([(V.double().T, W.double().T)])[0]


def _mean(samples: Tensor) -> Answer:
    """The mean of the samples and its standard error; inf for one sample."""
    count = len(samples)
    if count == 1:
        return samples.mean(), torch.full_like(samples[0], torch.inf)
    return samples.mean(), samples.std() / count**0.5
