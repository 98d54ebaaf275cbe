"""What a check found: one row for each quantity, frozen, and printing itself as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

#: the verdicts that a check does not pass with
FAULTS = ("differs", "failed")


@dataclass(frozen=True)
class CheckRow:
    """One quantity of a risk beside its value by plain PyTorch.

    Attributes:
        quantity: "H v", "diag F_emp", ...
        path: how the library computed it.
        error: the largest relative error of a parameter's part (of a sample's norm, of an entry); nan where
            there is nothing to compare.
        bound: what rounding may explain, from the dtype alone.
        verdict: "agrees", "differs", "refused" (by the library; ``words`` say why), "failed" (an error other than a
            refusal) or "unchecked" (plain PyTorch cannot compute it, or only at too high a cost; ``words`` say why).
        worst: the parameter whose part has the largest error, "" for a quantity without parts.
        words: the message of a refusal.
    """

    quantity: str
    path: str
    error: float
    bound: float
    verdict: str
    worst: str
    words: str

    def at(self, parameter: str) -> CheckRow:
        """The same with the parameter named."""
        return replace(self, worst=parameter)

    def cells(self) -> list[str]:
        """The row of the table."""
        compared = self.verdict in ("agrees", "differs")
        numbers = [f"{self.error:.1e}", f"{self.bound:.1e}"] if compared else ["", ""]
        return [self.quantity, self.path, *numbers, self.verdict, self.worst]


@dataclass(frozen=True)
class CheckResult:
    """The library's answers for one risk beside those of plain PyTorch; see :meth:`curvext.EmpiricalRisk.check`.

    Attributes:
        ok: whether no answer differs and none failed. A refusal is no answer, so it does not count against it.
        rows: one :class:`CheckRow` for each quantity.
    """

    ok: bool
    rows: tuple[CheckRow, ...]

    @classmethod
    def of(cls, rows: tuple[CheckRow, ...]) -> CheckResult:
        """The result made of these rows."""
        return cls(not any(row.verdict in FAULTS for row in rows), rows)

    def settled_by(self, wide: CheckResult, narrow: str) -> CheckResult:
        """The row of an answer that differs from plain PyTorch in ``narrow`` and agrees with it in float64."""

        def settled(row: CheckRow) -> CheckRow:
            other = next((r for r in wide.rows if r.quantity == row.quantity), row)
            if row.verdict != "differs" or other.verdict != "agrees":
                return row
            words = (
                f"with plain PyTorch in float64; in {narrow} that is off by {row.error:.1e} itself"
            )
            return replace(other, words=words)

        return CheckResult.of(tuple(settled(row) for row in self.rows))

    def __iter__(self) -> Iterator[CheckRow]:
        return iter(self.rows)

    def __getitem__(self, quantity: str) -> CheckRow:
        """The row of a quantity.

        Raises:
            KeyError: there is none of that name.
        """
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(f"{quantity!r}; there are {', '.join(row.quantity for row in self.rows)}")

    def __str__(self) -> str:
        compared = sum(row.verdict in ("agrees", "differs") for row in self.rows)
        faults = [row.quantity for row in self.rows if row.verdict in FAULTS]
        state = f"{', '.join(faults)} WRONG" if faults else "all agree"
        header = ["quantity", "path", "relative error", "bound", "verdict", "worst at"]
        lines = [f"{compared} quantities compared with plain PyTorch: {state}"]
        lines += _table([header, *(row.cells() for row in self.rows)])
        lines += [f"{row.quantity} {row.verdict}: {row.words}" for row in self.rows if row.words]
        return "\n".join(lines)


#: columns of numbers, aligned to the right
_NUMBERS = (2, 3)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i in _NUMBERS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
