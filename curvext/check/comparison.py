"""The library's answers for a risk beside those of plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvext.check.plain import Plain
from curvext.check.quantities import Quantities, Quantity
from curvext.check.result import CheckResult, CheckRow
from curvext.finite import NotFiniteError

if TYPE_CHECKING:
    from curvext.risk import EmpiricalRisk

#: errors that the library raises on purpose, or PyTorch where a derivative is missing
_REFUSALS = (ValueError, TypeError, RuntimeError)
#: parts below this share of the whole are judged as if they had it
_PART = 0.1


def second_opinion(
    risk: EmpiricalRisk, plain: Plain, samples: int, vectors: int, seed: int
) -> CheckResult:
    """Compares all quantities; see :meth:`curvext.EmpiricalRisk.check`.

    Raises:
        ValueError, TypeError, RuntimeError: the risk answers nothing, so there is nothing to check.
    """
    without_value: Exception | None = None
    try:
        risk.value()
    except _REFUSALS as refusal:
        without_value = refusal
    try:
        quantities = Quantities(risk, plain, samples, vectors, seed)
    except _REFUSALS as lack:
        raise (without_value or lack) from None
    judge = Judge(epsilon(risk))
    every = quantities.all()
    answers = {q.name: _answers(q) for q in every}
    both = {name: a for name, a in answers.items() if isinstance(a, _Both)}
    if without_value is not None and not both:  # every other quantity is refused too
        raise without_value
    terms = quantities.terms({name: a.plain for name, a in both.items()})
    rows = []
    for q in every:
        found = answers[q.name]
        if isinstance(found, _Neither):
            empty = (math.nan, judge.bound, found.verdict, "", found.words)
            rows.append(CheckRow(q.name, q.path, *empty))
            continue
        row = judge.row(q, found.ours, found.plain, terms[q.name])
        if q.name == "‖g_n‖" and row.verdict == "differs":
            row = row.at(quantities.worst_of_norms())
        rows.append(row)
    return CheckResult.of(tuple(map(_of_ranks, zip(*plain.group.objects(rows), strict=True))))


def _of_ranks(rows: tuple[CheckRow, ...]) -> CheckRow:
    """The row of the rank that failed, which knows why, or of the first."""
    return next((row for row in rows if row.verdict == "failed"), rows[0])


@dataclass(frozen=True)
class _Both:
    """Both answers, in float64, with a column for each vector."""

    ours: Tensor
    plain: Tensor


@dataclass(frozen=True)
class _Neither:
    """Why one of the two answers is missing."""

    verdict: str
    words: str


def _answers(q: Quantity) -> _Both | _Neither:
    if q.left:
        return _Neither("unchecked", q.left)
    ours: Tensor | None = None
    try:
        ours = q.ours()
    except NotFiniteError:  # counts as an answer: plain PyTorch has to agree that it is not finite
        pass
    except _REFUSALS as refusal:
        return _Neither("refused", str(refusal))
    except Exception as fault:  # whatever it is, go on with the other quantities
        return _Neither("failed", f"{type(fault).__name__}: {fault}")
    try:
        plain = q.plain()
    except _REFUSALS as lack:
        return _Neither("unchecked", f"plain PyTorch: {lack}")
    ours = torch.full_like(plain, math.nan) if ours is None else ours.double()
    return _Both(ours.view(len(ours), -1), plain.to(ours.device).view(len(plain), -1))


class Judge:
    """The error that rounding may explain, from the dtype alone.

    With ε the spacing of numbers at 1, a part may be off by ε^(2/3) of its norm: two thirds of the digits must agree.
    A part smaller than a tenth of the whole, or of the terms whose difference it is, counts as if it were that large:
    where terms cancel, their rounding stays.

    Args:
        epsilon: ε.
    """

    def __init__(self, epsilon: float) -> None:
        self.bound = epsilon ** (2 / 3)

    def row(self, q: Quantity, ours: Tensor, plain: Tensor, terms: float) -> CheckRow:
        """Compares part by part; ``terms`` is the norm of what may cancel."""
        if ours.shape != plain.shape:
            words = f"shape {list(ours.shape)}, by plain PyTorch {list(plain.shape)}"
            return CheckRow(q.name, q.path, math.inf, self.bound, "differs", "", words)
        lengths = [length for _, length in q.parts]
        least = _PART * max(float(plain.norm()), terms)
        errors = [
            _relative(float((a - b).norm()), max(float(b.norm()), least))
            for a, b in zip(ours.split(lengths), plain.split(lengths), strict=True)
        ]
        # nan is the worst
        at = max(
            range(len(errors)), key=lambda i: math.inf if errors[i] != errors[i] else errors[i]
        )
        verdict = "agrees" if errors[at] <= self.bound else "differs"
        return CheckRow(q.name, q.path, errors[at], self.bound, verdict, q.parts[at][0], "")


def _relative(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def epsilon(risk: EmpiricalRisk) -> float:
    """The spacing at 1 of the least precise numbers that the risk is computed in."""
    kind, found = risk.space.device.type, [torch.finfo(risk.space.dtype).eps]
    if torch.is_autocast_enabled(kind):
        found.append(torch.finfo(torch.get_autocast_dtype(kind)).eps)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    if kind == "cuda" and (products.allow_tf32 or convolutions.allow_tf32):
        found.append(2.0**-10 if risk.space.dtype is torch.float32 else 0.0)  # TF32 has ten bits
    return max(found)
