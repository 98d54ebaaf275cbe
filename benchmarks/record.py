"""What a run leaves: one JSON file for each suite and machine."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
#: not kept: a quick run is no evidence
QUICK_RESULTS = ROOT / "results" / "quick"

Row = dict[str, Any]


@dataclass
class Record:
    """The rows of one suite, with where and of what they were measured, and what could not be measured and why."""

    suite: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def failed(self, error: BaseException | str, **where: object) -> None:
        """Keeps what failed, and its reason in one line."""
        self.failures.append({**where, "reason": reason(error)})

    def save(self, folder: Path) -> Path:
        """Writes ``<folder>/<suite>.json``."""
        path = folder / f"{self.suite}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines_of(_plain(asdict(self))))
        return path


def lines_of(kept: dict[str, Any]) -> str:
    """A record as JSON, one line for each row, so that a change of a row is a change of a line."""
    parts = []
    for key, value in kept.items():
        if isinstance(value, list) and value:
            words = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        else:
            words = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {words}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _plain(value: Any) -> Any:
    """Six significant digits, which is more than a clock gives, and null for what is no number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def load(path: Path) -> Record:
    """A record from its file; files of the first format have no suite, and rows of curvext alone.

    Raises:
        ValueError: the file holds no rows.
    """
    kept = json.loads(path.read_text())
    if not isinstance(kept, dict) or not isinstance(kept.get("rows"), list):
        raise ValueError(f"benchmarks: {path} is no record of a run: it has no rows")
    for row in kept["rows"]:
        if "network" in row:
            row.setdefault("library", "curvext")
            row.setdefault("mode", "eager")
    return Record(
        kept.get("suite", path.stem),
        kept["environment"],
        kept["rows"],
        kept.get("failures", []),
        kept.get("settings", {"rounds": kept.get("rounds")}),
        kept.get("seconds", 0.0),
    )


def reason(error: BaseException | str) -> str:
    """An error in one line of at most 200 characters, without the paths of the machine it happened on."""
    if isinstance(error, str):
        return error
    words = f"{type(error).__name__}: {error}".strip().splitlines()
    line = next((w.strip() for w in words if w.strip()), type(error).__name__)
    line = " ".join(part if not part.startswith("/") else "…" for part in line.split())
    return line if len(line) <= 200 else line[:199] + "…"
