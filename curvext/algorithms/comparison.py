"""The curvature matrices of one risk at one point, side by side.

One file because the five matrices share their eigenpairs, probes and refusals, and are read side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from curvext.algorithms.comparison_sums import ComparisonSums
from curvext.algorithms.eigsh import eigsh
from curvext.algorithms.equalities import equalities
from curvext.algorithms.leading_spaces import leading_of, ordered, overlap
from curvext.algorithms.probes import Probes, representable
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.risks import HasMatrices
from curvext.algorithms.spectral_density import spectral_density
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, as_seed, check_risk
from curvext.errors import NoSecondDerivativeError
from curvext.progress import Progress
from curvext.results import Comparison, Estimate

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
    beside: Mapping[str, SymmetricOperator] | None = None,
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
        beside: {name: operator} of the same P, to be compared with them: what ``risk.kfac()`` gives, say, for
            ‖K − F‖/‖F‖; and exact blocks, for what of it is due to the zeros between them.

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
    doors |= _beside(beside or {}, gradient)
    size = len(gradient)
    dense = {n: d.dense() for n, d in doors.items()} if size <= dense_limit else None
    pairs = {}
    for name, door in doors.items():
        if dense is not None:
            pairs[name] = leading_of(dense[name], min(leading, size), door)
        else:
            found = eigsh(door.whole(), min(leading, size), "LM", seed, _TOL, progress=progress)
            door.count += found.products
            pairs[name] = ordered(found.values, found.vectors, found.residuals, door)
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
        sums = ComparisonSums(list(doors), basis.shape[1])
        for columns in [*basis.split(_HELD, 1), *z.split(_HELD, 1)]:
            if dense is not None:
                sums.add(columns, {n: matrix @ columns for n, matrix in dense.items()})
            elif columns.shape[1]:
                sums.add(columns, {n: _times(door, columns) for n, door in doors.items()})
            bar.to(sum(d.count for d in doors.values()))
    sums.products = sum(d.count for d in doors.values())
    overlaps = {(a, b): overlap(pairs[a], pairs[b]) for a, b in permutations(doors, 2)}
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
        equalities=equalities(
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
        except (ValueError, NoSecondDerivativeError) as error:
            # the gradient exists, so model and data are sound: this matrix is undefined here, and the
            # result prints why
            refused[name] = str(error)
        else:
            doors[name] = door
    if not any(name in doors for name in ("G", "F_emp")):
        raise ValueError(f"compare: neither G nor F_emp exists: {refused}")
    return doors, refused


def _beside(given: Mapping[str, SymmetricOperator], gradient: Tensor) -> dict[str, Products]:
    """The operators of the caller."""
    doors = {}
    for name, operator in given.items():
        where = f"compare: beside[{name!r}]"
        if name in _MATRICES:
            raise ValueError(f"{where}: this is the name of a matrix of the risk; choose another")
        doors[name] = Products(operator, where, like=gradient)
        if doors[name].size != len(gradient):
            raise ValueError(
                f"{where}: expected an operator of the risk's {len(gradient)} parameters, got one of "
                f"{doors[name].size}"
            )
    return doors


def _exact_traces(doors: dict[str, Products]) -> dict[str, Tensor]:
    """tr F_emp, where the operator has it: the mean squared gradient norm, at the cost of a gradient."""
    operator = doors["F_emp"].operator if "F_emp" in doors else None
    trace = getattr(operator, "trace", None)
    return {} if trace is None else {"F_emp": trace().double()}


def _times(door: Products, columns: Tensor) -> Tensor:
    return door.block(representable(door, columns)).double()


def _own_labels_share(risk: Any) -> float | None:
    """What tr F_emp / tr F would be for labels of the network's own, where the risk knows."""
    share = getattr(risk, "own_labels_ratio", None)
    return None if share is None else share()
