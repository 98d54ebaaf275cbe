"""The curvature matrices of one risk at one point, side by side.

One file because the five matrices share their eigenpairs, probes and refusals, and are read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.probes import Probes, representable
from curvext.algorithms.products import Products
from curvext.algorithms.progress import Progress
from curvext.algorithms.risks import HasMatrices
from curvext.algorithms.spectral_density import spectral_density
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, as_seed, check_risk
from curvext.results import Comparison, Equality, Estimate

#: up to so many parameters the matrices are formed and every figure is exact
DENSE_LIMIT = 1000
#: tolerance of the leading eigenvalues, relative to the largest; the result states their residuals
_TOL = 1e-6
#: columns whose products are held at a time, for every matrix
_HELD = 4


@together
def compare(
    risk: HasMatrices,
    leading: int = 5,
    probes: int = 16,
    samples: int = 1,
    seed: int = 0,
    near: float = 0.1,
    matrices: Sequence[str] = ("H", "G", "F", "F_mc", "F_emp"),
    densities: bool = False,
    dense_limit: int = DENSE_LIMIT,
    progress: bool = False,
) -> Comparison:
    """H, G, F, its Monte-Carlo estimate and the empirical Fisher at one point: which are equal, how far apart the rest.

    Distances are relative Frobenius norms ‖A − B‖/‖B‖. Up to ``dense_limit`` parameters the matrices are
    formed and all is exact. Beyond, with Q the leading eigenvectors of the first matrix that is PSD by
    construction, Π = I − QQᵀ and random signs z, the same for all matrices,

        ‖A‖² = ‖A Q‖² + E‖A Π z‖²,    tr A = tr QᵀA Q + E[zᵀ Π A Π z]

    so only the part outside the span of Q is estimated; ratios carry the jackknife's standard errors. The overlap of
    two leading eigenspaces is ‖UᵀV‖²/k, 1 for the same space and k/P for unrelated ones; "leading" means the largest
    in magnitude.

    Args:
        risk: a :class:`curvext.EmpiricalRisk`, or an object with its methods value, gradient, hessian, ggn, fisher,
            mc_fisher and empirical_fisher.
        leading: eigenpairs of each matrix; at most P.
        probes: random vectors, at least 2.
        samples: labels drawn for each datum, for the Monte-Carlo Fisher.
        seed: of labels and probes.
        near: up to this relative distance two matrices are called nearly equal.
        matrices: which to compare, G or F_emp among them.
        densities: also take the spectral density of each matrix, at 800 more products each.
        dense_limit: form the matrices up to this many parameters, by P products each.
        progress: show a bar over products (needs tqdm).

    Returns:
        A :class:`Comparison`, which prints itself as a table. A matrix that this loss does not have is missing, and
        ``refused`` says why.

    Raises:
        TypeError: ``risk`` lacks a method.
        ValueError: an argument is out of range.

    Cost:
        P products with each matrix; or those of :func:`curvext.eigsh` for each, and leading + probes more.

    Source:
        Frobenius norms from products: Hutchinson (1990) on AᵀA; deflation as in Meyer et al. (2021).

    Example:
        >>> import torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> c = cx.compare(cx.EmpiricalRisk(model, loss, (torch.eye(2), torch.ones(2, 1))))
        >>> [(e.claim, e.holds) for e in c.equalities[:2]]
        [('F = G', True), ('H = G', True)]
    """
    check_risk("compare", risk, ("value", "gradient", *_MATRICES.values()))
    leading = as_integer("compare: leading", leading, 1)
    probes = as_integer("compare: probes", probes, 2, why="for a standard error")
    samples = as_integer("compare: samples", samples, 1)
    dense_limit = as_integer("compare: dense_limit", dense_limit, 0)
    seed = as_seed("compare: seed", seed)
    near = as_number("compare: near", near, "a number > 0", lambda value: value > 0)
    unknown = [name for name in matrices if name not in _MATRICES]
    if unknown or not {"G", "F_emp"} & set(matrices):
        raise ValueError(
            f"compare: matrices: expected some of {list(_MATRICES)}, G or F_emp among them, "
            f"got {list(matrices)}"
        )
    gradient = risk.gradient()
    wanted = [name for name in _MATRICES if name in matrices]
    doors, refused = _doors(risk, wanted, gradient, samples, seed)
    size = len(gradient)
    dense = {n: d.dense() for n, d in doors.items()} if size <= dense_limit else None
    pairs = {}
    for name, door in doors.items():
        if dense is not None:
            pairs[name] = _leading(dense[name], min(leading, size), door)
        else:
            found = eigsh(door.operator, min(leading, size), "LM", seed, _TOL, progress=progress)
            door.count += found.products
            pairs[name] = _ordered(found.values, found.vectors, found.residuals, door)
    if dense is not None:
        basis = torch.eye(size, dtype=torch.float64, device=gradient.device)
        z = basis[:, :0]
    else:
        first = next(iter(doors.values()))
        basis = next(pairs[n][1] for n in ("G", "F_emp") if n in pairs)
        z = Probes(first, seed).signs(probes).double()
        z = representable(first, z - basis @ (basis.T @ z))
    basis, z = basis.to(gradient.device), z.to(gradient.device)
    with Progress(progress, None, "compare") as bar:
        sums = _Sums(list(doors), basis.shape[1])
        for columns in [*basis.split(_HELD, 1), *z.split(_HELD, 1)]:
            if dense is not None:
                sums.add(columns, {n: matrix @ columns for n, matrix in dense.items()})
            elif columns.shape[1]:
                sums.add(columns, {n: _times(door, columns) for n, door in doors.items()})
            bar.to(sum(d.count for d in doors.values()))
    sums.products = sum(d.count for d in doors.values())
    overlaps = {(a, b): _overlap(pairs[a], pairs[b]) for a, b in permutations(doors, 2)}
    distances = {pair: sums.distance(*pair) for pair in overlaps}
    exact_traces = _exact_traces(doors)
    ratio = None
    if "F" in doors and "F_emp" in doors:
        known = exact_traces.get("F_emp")
        ratio = sums.estimate(
            lambda s: (s["trace", "F_emp"] if known is None else known) / s["trace", "F"]
        )
    rounding = torch.finfo(next(iter(doors.values())).dtype).eps ** (2 / 3)
    return Comparison(
        size=size,
        value=float(risk.value()),
        gradient_norm=float(gradient.double().norm()),
        traces={
            n: Estimate(exact_traces[n], torch.zeros_like(exact_traces[n]), sums.products)
            if n in exact_traces
            else sums.trace(n)
            for n in doors
        },
        norms={n: sums.norm(n) for n in doors},
        eigenvalues={n: values for n, (values, _, _) in pairs.items()},
        eigenvalue_errors={n: errors for n, (_, _, errors) in pairs.items()},
        distances=distances,
        overlaps=overlaps,
        equalities=_equalities(
            distances, ratio, _own_labels_share(risk), refused, near, rounding, samples
        ),
        refused=refused,
        densities={
            n: spectral_density(d.operator, seed=seed, progress=progress)
            for n, d in doors.items()
            if densities
        },
        products=sums.products,
    )


#: the name of each matrix, and the method of the risk that gives it
_MATRICES = {
    "H": "hessian",
    "G": "ggn",
    "F": "fisher",
    "F_mc": "mc_fisher",
    "F_emp": "empirical_fisher",
}


def _doors(
    risk: HasMatrices, wanted: list[str], gradient: Tensor, samples: int, seed: int
) -> tuple[dict[str, Products], dict[str, str]]:
    """The operators that exist for this loss and model, and the reason for each that does not."""
    doors: dict[str, Products] = {}
    refused: dict[str, str] = {}
    for name in wanted:
        method = _MATRICES[name]
        arguments = {"samples": samples, "seed": seed} if name == "F_mc" else {}
        try:
            door = Products(getattr(risk, method)(**arguments), "compare", like=gradient)
            door.vector(torch.zeros_like(gradient))  # some refuse only when they are multiplied
        except (ValueError, NotImplementedError) as error:
            # the gradient exists, so model and data are sound: this matrix is undefined here, and the
            # result prints why
            refused[name] = str(error)
        else:
            doors[name] = door
    if not any(name in doors for name in ("G", "F_emp")):
        raise ValueError(f"compare: neither G nor F_emp exists: {refused}")
    return doors, refused


def _exact_traces(doors: dict[str, Products]) -> dict[str, Tensor]:
    """tr F_emp, where the operator has it: the mean squared gradient norm, at the cost of a gradient."""
    operator = doors["F_emp"].operator if "F_emp" in doors else None
    trace = getattr(operator, "trace", None)
    return {} if trace is None else {"F_emp": trace().double()}


#: eigenvalues, vectors and residuals, the largest in magnitude first
Pairs = tuple[Tensor, Tensor, Tensor]


def _leading(matrix: Tensor, k: int, door: Products) -> Pairs:
    values, vectors = torch.linalg.eigh(matrix)
    at = values.abs().argsort(descending=True, stable=True)[:k]
    return _ordered(values[at], vectors[:, at], torch.zeros_like(values[at]), door)


def _ordered(values: Tensor, vectors: Tensor, residuals: Tensor, door: Products) -> Pairs:
    """Sorted by magnitude, without those within their error of zero, whose vectors are arbitrary."""
    at = values.abs().argsort(descending=True, stable=True)
    values, vectors, residuals = values[at].double(), vectors[:, at].double(), residuals[at]
    floor = torch.finfo(door.dtype).eps ** (2 / 3) * values.abs().max()
    there = values.abs() > residuals.double().clamp(min=float(floor))
    return values[there], vectors[:, there], residuals[there].double()


def _overlap(one: Pairs, other: Pairs) -> float:
    """‖UᵀV‖²/k of the leading k that both have; nan where there are none."""
    k = min(len(one[0]), len(other[0]))
    if k == 0:
        return float("nan")
    return float((one[1][:, :k].T @ other[1][:, :k]).square().sum()) / k


def _times(door: Products, columns: Tensor) -> Tensor:
    return door.block(representable(door, columns)).double()


class _Sums:
    """Squares and quadratic forms column by column: the first are of a basis, the rest of probes.

    Differences are taken before they are squared, so equal matrices are 0 apart and not √eps.
    """

    def __init__(self, names: list[str], basis: int) -> None:
        self._names = names
        self._basis = basis
        self.products = 0
        self._parts: dict[Any, list[Tensor]] = {}

    def add(self, columns: Tensor, images: dict[str, Tensor]) -> None:
        """Adds A V for some columns V ``[P, K]`` and each matrix A."""
        for name, image in images.items():
            self._note(("square", name), image.square())
            self._note(("trace", name), image * columns)
        for i, a in enumerate(self._names):
            for b in self._names[:i]:
                self._note(("apart", a, b), (images[a] - images[b]).square())

    def _note(self, key: Any, entries: Tensor) -> None:
        self._parts.setdefault(key, []).append(entries.sum(0))

    def trace(self, name: str) -> Estimate:
        """tr A."""
        return self.estimate(lambda s: s["trace", name])

    def norm(self, name: str) -> Estimate:
        """‖A‖_F."""
        return self.estimate(lambda s: s["square", name].sqrt())

    def distance(self, one: str, other: str) -> Estimate:
        """‖A − B‖ / ‖B‖, 0 where both vanish."""
        pair = (
            ("apart", one, other) if ("apart", one, other) in self._parts else ("apart", other, one)
        )

        def ratio(s: dict[Any, Tensor]) -> Tensor:
            apart = s[pair]
            return torch.where(
                apart == 0, torch.zeros_like(apart), apart / s["square", other]
            ).sqrt()

        return self.estimate(ratio)

    def estimate(self, g: Callable[[dict[Any, Tensor]], Tensor]) -> Estimate:
        """g of the totals, with the jackknife's standard error over the probes."""
        columns = {key: torch.cat(parts) for key, parts in self._parts.items()}
        exact = {key: v[: self._basis].sum() for key, v in columns.items()}
        random = {key: v[self._basis :] for key, v in columns.items()}
        count = len(next(iter(random.values())))
        if count == 0:
            value = g(exact)
            return Estimate(value, torch.zeros_like(value), self.products)
        value = g({key: exact[key] + v.mean() for key, v in random.items()})
        left_out = g({key: exact[key] + (v.sum() - v) / (count - 1) for key, v in random.items()})
        spread = (left_out - left_out.mean()).square().sum() * (count - 1) / count
        return Estimate(value, spread.sqrt(), self.products, count - 1)


def _own_labels_share(risk: Any) -> float | None:
    """What tr F_emp / tr F would be for labels of the network's own, where the risk knows."""
    share = getattr(risk, "own_labels_ratio", None)
    return None if share is None else share()


def _equalities(
    distances: dict[tuple[str, str], Estimate],
    ratio: Estimate | None,
    own: float | None,
    refused: dict[str, str],
    near: float,
    rounding: float,
    samples: int,
) -> tuple[Equality, ...]:
    """The expected relation of each pair of matrices, and the measured one."""

    def judged(one: str, other: str, equal: str, nearly: str, apart: str) -> Equality:
        claim = f"{one} = {other}"
        for name in (one, other):
            if all(name not in pair for pair in distances):
                return Equality(claim, None, False, None, f"there is no {name}")
        gap = distances[one, other]
        value, error = float(gap.value), float(gap.standard_error)
        if value <= rounding:
            return Equality(claim, True, True, gap, equal)
        close = value + 2 * error <= near
        return Equality(claim, False, close, gap, nearly if close else apart)

    labels, share = "are not the network's own", ""
    if ratio is not None:
        share = f" (tr F_emp = {float(ratio.value):.2g} tr F"
        if own is not None and own != 1:
            share += f"; labels of its own would give {own:.2g}, as a mean within a datum enters F_emp squared"
        share += ")"
        relative = math.nan if own is None else float(ratio.value) / own
        if relative < 0.9:
            labels = "surprise the network less than its own would"
        elif relative > 1.1:
            labels = "surprise the network more than its own would"
    claims = (
        judged(
            "F",
            "G",
            "the loss is −log p of an exponential family in the network's outputs",
            "rounding, or a loss that is no −log p of its outputs' natural parameters",
            "the outputs are no natural parameters of the loss's distribution",
        ),
        judged(
            "H",
            "G",
            "H − G vanishes: there are no residuals, or the network is linear in these parameters",
            "H − G, the network's own curvature weighted by the residuals, counts little",
            "H − G, the network's own curvature weighted by the residuals, is not small",
        ),
        judged(
            "F_mc",
            "F",
            "the draws leave nothing to chance here",
            f"F in expectation; {samples} drawn for each datum come close",
            f"F in expectation only: with {samples} drawn for each datum chance is this large, and falls as 1/√samples",
        ),
        judged(
            "F_emp",
            "F",
            "the second moment over true labels is that over the network's",
            f"the network's distribution fits the labels{share}",
            f"the true labels {labels}{share}",
        ),
    )
    known = {*refused, *(name for pair in distances for name in pair)}
    return tuple(c for c in claims if set(c.claim.split(" = ")) <= known)
