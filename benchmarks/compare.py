"""``python -m benchmarks compare A.json B.json``: what got slower, or larger, by more than noise."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.record import Record, Row

#: what tells two rows apart; what a suite lacks is left out
IDENTITY = (
    "network",
    "kernel",
    "sweep",
    "value",
    "quantity",
    "library",
    "mode",
    "problem",
    "dtype",
    "form",
)
#: less than this is never called a change, however quiet the machine
LEAST = 0.05


@dataclass(frozen=True)
class Change:
    """One row that differs by more than noise."""

    name: str
    measure: str
    before: float
    after: float
    noise: float

    @property
    def ratio(self) -> float:
        return self.after / self.before

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.measure} {self.before:.4g} -> {self.after:.4g} "
            f"({self.ratio:.2f}x, noise {self.noise:.0%})"
        )


@dataclass(frozen=True)
class Comparison:
    """All changes between two records; new and missing rows are named, not compared."""

    slower: list[Change]
    faster: list[Change]
    unchanged: int
    only_before: list[str]
    only_after: list[str]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"SLOWER  {change}" for change in self.slower]
        lines += [f"faster  {change}" for change in self.faster]
        lines += [f"only in the first: {name}" for name in self.only_before]
        lines += [f"only in the second: {name}" for name in self.only_after]
        lines.append(
            f"{len(self.slower)} slower, {len(self.faster)} faster, {self.unchanged} within noise"
        )
        return "\n".join(lines)


def name_of(row: Row) -> str:
    """A row's identity in words."""
    return " ".join(str(row[key]) for key in IDENTITY if row.get(key) is not None)


def measure_of(row: Row) -> str:
    """The figure that is compared: gradients where there is one, since a slower machine slows its unit alike."""
    return next(key for key in ("gradients", "milliseconds", "megabytes") if key in row)


def spread(row: Row, measure: str) -> float:
    """Half the distance of the quartiles beside the median; none is kept for memory, which does not vary."""
    if row.get("lower") is None or row.get("upper") is None or not row[measure]:
        return 0.0
    return 0.5 * (row["upper"] - row["lower"]) / row[measure]


def compare(before: Record, after: Record) -> Comparison:
    """Rows of one name are compared. Noise is three times both rows' spread together, and 5 % at least.

    Raises:
        ValueError: the records are of different suites.
    """
    if before.suite != after.suite:
        raise ValueError(
            f"compare: the records are of the suites {before.suite!r} and {after.suite!r}"
        )
    notes = [
        f"{key} differs: {before.environment.get(key)} and {after.environment.get(key)}"
        for key in ("machine", "processor", "gpu", "threads", "torch")
        if before.environment.get(key) != after.environment.get(key)
    ]
    first = {name_of(row): row for row in before.rows}
    second = {name_of(row): row for row in after.rows}
    slower, faster, unchanged = [], [], 0
    for name in [n for n in first if n in second]:
        old, new = first[name], second[name]
        measure = measure_of(old)
        if not old.get(measure) or new.get(measure) is None:
            continue
        noise = max(LEAST, 3 * (spread(old, measure) ** 2 + spread(new, measure) ** 2) ** 0.5)
        change = Change(name, measure, old[measure], new[measure], noise)
        if change.ratio > 1 + noise:
            slower.append(change)
        elif change.ratio < 1 / (1 + noise):
            faster.append(change)
        else:
            unchanged += 1
    return Comparison(
        sorted(slower, key=lambda c: -c.ratio),
        sorted(faster, key=lambda c: c.ratio),
        unchanged,
        [n for n in first if n not in second],
        [n for n in second if n not in first],
        notes,
    )
