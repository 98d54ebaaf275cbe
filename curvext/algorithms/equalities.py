"""Which curvature matrices theory says are equal, and whether they are."""

from __future__ import annotations

import math

from curvext.results import Equality, Estimate


def equalities(
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
