"""Results of :func:`curvext.compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from curvext.results.density import Density
from curvext.results.estimate import Estimate, with_error
from curvext.results.result import Result


@dataclass(frozen=True, repr=False)
class Equality(Result):
    """A claim that two curvature matrices are equal, and its test at one point.

    Attributes:
        claim: such as "H = G".
        holds: to rounding; None where one of the two cannot be computed.
        near: the distance is small, its error included.
        gap: the relative distance in units of the second, or None.
        why: the reason.
    """

    claim: str
    holds: bool | None
    near: bool
    gap: Estimate | None
    why: str

    def __str__(self) -> str:
        if self.holds is None:
            return f"{self.claim} is not defined: {self.why}"
        state = "holds" if self.holds else "nearly holds" if self.near else "does not hold"
        return f"{self.claim} {state}: {self.why}"


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """The curvature matrices of one risk at one point: those of H, G, F, F_mc and F_emp that exist.

    Attributes:
        size: P.
        value: L.
        gradient_norm: ‖∇L‖.
        traces: by matrix.
        norms: Frobenius norms, by matrix.
        eigenvalues: the leading ones by matrix, largest in magnitude first, without those that are zero.
        eigenvalue_errors: an eigenvalue lies within this of each; 0 where the matrix was formed.
        distances: ``[a, b]`` is ‖A − B‖/‖B‖.
        overlaps: ``[a, b]`` is the mean squared cosine between the leading eigenspaces; nan where there is none.
        equalities: the expected relations of pairs, and whether they hold here.
        refused: why a matrix is missing.
        densities: spectral densities, by matrix, where they were asked for.
        products: how many products it took in all, densities not counted.
    """

    size: int
    value: float
    gradient_norm: float
    traces: dict[str, Estimate]
    norms: dict[str, Estimate]
    eigenvalues: dict[str, Tensor]
    eigenvalue_errors: dict[str, Tensor]
    distances: dict[tuple[str, str], Estimate]
    overlaps: dict[tuple[str, str], float]
    equalities: tuple[Equality, ...]
    refused: dict[str, str]
    densities: dict[str, Density]
    products: int

    def __str__(self) -> str:
        names = list(self.traces)

        def number(estimate: Estimate) -> str:
            value, error = float(estimate.value), float(estimate.standard_error)
            return with_error(value, error) if error else f"{value:.4g}"

        def pairs(cell: Callable[[str, str], str]) -> list[list[str]]:
            return [["", *names]] + [
                [a, *("" if a == b else cell(a, b) for b in names)] for a in names
            ]

        count = max((len(v) for v in self.eigenvalues.values()), default=0)
        figures = [["matrix", "trace", "Frobenius norm", "leading eigenvalues"]] + [
            [
                n,
                number(self.traces[n]),
                number(self.norms[n]),
                "  ".join(f"{v:.3g}" for v in self.eigenvalues[n].tolist()[:3]),
            ]
            for n in names
        ]
        lines = [
            f"P = {self.size}, L = {self.value:.6g}, ‖∇L‖ = {self.gradient_norm:.2e}; {self.products} products",
            "",
            *_table(figures),
            "",
            "‖row − column‖ / ‖column‖",
            *_table(pairs(lambda a, b: number(self.distances[a, b]))),
            "",
            f"overlap of the {count} leading eigenvectors (chance: {count / max(1, self.size):.2g})",
            *_table(pairs(lambda a, b: f"{self.overlaps[a, b]:.3f}")),
            "",
        ]
        lines += [str(e) for e in self.equalities]
        lines += [f"no {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    """Rows in columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
