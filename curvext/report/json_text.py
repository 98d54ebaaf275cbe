"""A report as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from curvext.report.measurements import Report


def as_json(report: Report) -> str:
    """All figures of a report; what is no number in JSON (inf, nan) is null.

    Pairs of matrices are keys "A, B". The eigenvector of the verdict is left out.
    """
    return json.dumps(_plain(report), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(x: Any) -> Any:
    if isinstance(x, Tensor):
        return _plain(x.tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, dict):
        return {", ".join(k) if isinstance(k, tuple) else k: _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if is_dataclass(x):
        return {f.name: _plain(getattr(x, f.name)) for f in fields(x) if f.name != "direction"}
    return x
