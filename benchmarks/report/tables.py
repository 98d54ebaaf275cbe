"""Markdown tables of records: every figure in them is a figure of the JSON, rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from benchmarks.record import Record, Row

#: quantities in the order of the pages
QUANTITIES = (
    "gradient",
    "diag F_emp",
    "diag F_mc",
    "diag G",
    "norms",
    "F_emp v kept",
    "F_emp v",
    "F_emp V kept",
    "F_emp V",
    "G v kept",
    "G v",
    "G V kept",
    "G V",
    "H v kept",
    "H v",
    "H V kept",
    "H V",
    "Lanczos G",
    "Lanczos H",
)
#: rows of the summary: (words, quantity, mode)
SUMMARY_ROWS = (
    ("diag F_emp", "diag F_emp", "eager"),
    ("per-sample gradient norms", "norms", "eager"),
    ("F_emp v, kept", "F_emp v kept", "eager"),
    ("F_emp v, from scratch", "F_emp v", "eager"),
    ("G v, kept", "G v kept", "eager"),
    ("G v, kept, `compile=True`", "G v kept", "compiled"),
    ("G v, from scratch", "G v", "eager"),
    ("G v, from scratch, `compile=True`", "G v", "compiled"),
    ("H v, kept", "H v kept", "eager"),
    ("H v, kept, `compile=True`", "H v kept", "compiled"),
    ("H v, from scratch", "H v", "eager"),
    ("H v, from scratch, `compile=True`", "H v", "compiled"),
)
#: README's rows: those without compilation
README_ROWS = tuple(row for row in SUMMARY_ROWS if row[2] == "eager")
#: a fast wrong answer is not fast: from this relative error on a row is no rival
WRONG = 1e-3
README_NETWORKS = ("mlp", "cnn", "gpt")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table as lines."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def figure(value: float | None, digits: int = 2) -> str:
    """A figure with fixed decimals, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def significant(value: float | None) -> str:
    """Three significant digits, without an exponent from a thousandth on."""
    if value is None:
        return "–"
    if value == 0 or not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def order(quantity: str) -> tuple[int, str]:
    return (QUANTITIES.index(quantity) if quantity in QUANTITIES else len(QUANTITIES), quantity)


def networks_of(record: Record) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in record.rows if "network" in row))


def gradients(record: Record) -> dict[tuple[str, str, str, str], Row]:
    """Rows by (network, quantity, library, mode)."""
    return {
        (row["network"], row["quantity"], row["library"], row["mode"]): row
        for row in record.rows
        if "network" in row
    }


def models_table(record: Record, memory: Record | None, network: str) -> list[str]:
    """Every quantity of a network by every library: cost, memory and error in one row."""
    peaks = gradients(memory) if memory else {}
    rows = sorted(
        (row for row in record.rows if row["network"] == network),
        key=lambda row: (order(row["quantity"]), row["library"] != "curvext", row["library"]),
    )
    cells = []
    for row in rows:
        peak = peaks.get((network, row["quantity"], row["library"], row["mode"]))
        name = row["library"] + (", compiled" if row["mode"] == "compiled" else "")
        cells.append(
            [
                row.get("of", row["quantity"]),
                name,
                significant(row["milliseconds"]),
                figure(row["gradients"]),
                f"{figure(row['lower'])}–{figure(row['upper'])}",
                figure(peak["gradients"]) if peak else "–",
                "–" if row["error"] is None else f"{row['error']:.0e}",
            ]
        )
    header = ["quantity", "library", "ms", "gradients", "quartiles", "peak memory", "error"]
    return table(header, cells)


def fastest_other(record: Record, network: str, quantity: str) -> Row | None:
    """The fastest right row of another library for a quantity; nobody else keeps anything between products."""
    base = quantity.removesuffix(" kept")
    rows = [
        row
        for row in record.rows
        if row.get("network") == network
        and row["quantity"] == base
        and row["library"] != "curvext"
        and (row["error"] or 0.0) < WRONG
        and "of" not in row
    ]
    return min(rows, key=lambda row: row["gradients"], default=None)


def summary_table(
    record: Record, chosen: Sequence[tuple[str, str, str]] = SUMMARY_ROWS
) -> list[str]:
    """curvext and the fastest other library, in gradients."""
    found = gradients(record)
    rows = []
    for words, quantity, mode in chosen:
        own_rows = [found.get((n, quantity, "curvext", mode)) for n in README_NETWORKS]
        if mode == "compiled" and not any(own_rows):
            continue  # not asked for in this run
        cells = [words]
        for network, own in zip(README_NETWORKS, own_rows, strict=True):
            other = fastest_other(record, network, quantity)
            cell = "–" if own is None else f"**{figure(own['gradients'])}**"
            cells.append(cell + (f" · {figure(other['gradients'])}" if other else ""))
        rows.append(cells)
    return table(["in gradients", *(n.upper() for n in README_NETWORKS)], rows)


def kernels_table(record: Record, memory: Record | None, kernel: str) -> list[str]:
    """Every form of every problem of a kernel."""
    peaks = {
        (row["kernel"], row["problem"], row["form"]): row["megabytes"]
        for row in (memory.rows if memory else [])
        if "kernel" in row
    }
    cells = []
    for row in record.rows:
        if row["kernel"] != kernel:
            continue
        share = row.get("of floor")
        peak = peaks.get((kernel, row["problem"], row["form"]))
        cells.append(
            [
                row["problem"],
                row["form"],
                significant(row["milliseconds"]),
                f"{significant(row.get('lower'))}–{significant(row.get('upper'))}",
                "–" if share is None else f"{100 * share:.0f} % of {row['floor']}",
                significant(row.get("GFLOP/s")),
                significant(row.get("GB/s")),
                "–" if peak is None else significant(peak),
                "–" if row.get("error") is None else f"{row['error']:.0e}",
            ]
        )
    header = ["problem", "form", "ms", "quartiles", "floor", "GFLOP/s", "GB/s", "MB", "error"]
    return table(header, cells)


def kernels_summary(record: Record) -> list[str]:
    """Shares of the floor and times beside the plain form: of a kernel's cases the median, the least and the most."""
    cells = []
    for kernel in dict.fromkeys(row["kernel"] for row in record.rows):
        forms = {(r["problem"], r["form"]): r for r in record.rows if r["kernel"] == kernel}
        own = [row for (_, form), row in forms.items() if form == "kernel"]
        shares = [100 * row["of floor"] for row in own if row.get("of floor") is not None]
        plain = [(row, forms.get((row["problem"], "eager"))) for row in own]
        times = [other["milliseconds"] / row["milliseconds"] for row, other in plain if other]
        error = max((row["error"] for row in own if row.get("error") is not None), default=None)
        cells.append(
            [
                kernel,
                str(len(own)),
                spread(shares, 0),
                spread(times, 1),
                "–" if error is None else f"{error:.0e}",
            ]
        )
    return table(["kernel", "cases", "% of the floor", "times eager", "largest error"], cells)


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and the least and the most."""
    if not values:
        return "–"
    middle, least, most = (figure(f(values), digits) for f in (median, min, max))
    return middle if len(values) == 1 else f"{middle} ({least}–{most})"


def scaling_summary(record: Record) -> list[str]:
    """The exponent of every quantity of curvext, a column for what grows."""
    found = curves(record)
    own = {
        sweep: {name: rows for name, rows in by_name.items() if "(curvlinops)" not in name}
        for sweep, by_name in found.items()
    }
    names = list(dict.fromkeys(name for by_name in own.values() for name in by_name))
    cells = [
        [name, *(figure(exponent(own[sweep].get(name, []))) for sweep in found)] for name in names
    ]
    return table(["time grows with", *found], cells)


def memory_summary(record: Record) -> list[str]:
    """Peaks of curvext in gradients' peaks, a column for each network."""
    found = {
        (row["quantity"], row["network"]): row["gradients"]
        for row in record.rows
        if row.get("library") == "curvext" and "network" in row
    }
    networks = list(dict.fromkeys(network for _, network in found))
    quantities = sorted({quantity for quantity, _ in found}, key=order)
    cells = [[q, *(figure(found.get((q, n))) for n in networks)] for q in quantities]
    return table(["peak, in a gradient's", *networks], cells)


def curves(record: Record) -> dict[str, dict[str, list[Row]]]:
    """Rows by sweep and curve, ascending."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in record.rows:
        name = (
            row["quantity"]
            if row["library"] == "curvext"
            else f"{row['quantity']} ({row['library']})"
        )
        found.setdefault(row["sweep"], {}).setdefault(name, []).append(row)
    for by_name in found.values():
        for rows in by_name.values():
            rows.sort(key=lambda row: row["value"])
    return found


def exponent(rows: list[Row]) -> float | None:
    """The power by which time grows between the last two points: 1 is linear."""
    if len(rows) < 2:
        return None
    a, b = rows[-2], rows[-1]
    x = "parameters" if a["sweep"] == "P" else "value"
    return math.log(b["milliseconds"] / a["milliseconds"]) / math.log(b[x] / a[x])


def scaling_table(record: Record) -> list[str]:
    """The exponent of every curve, and its cost in gradients at its last point."""
    cells = []
    for sweep, by_name in curves(record).items():
        unit = by_name.get("gradient (torch)")
        for name, rows in by_name.items():
            last = rows[-1]
            beside = last["milliseconds"] / unit[-1]["milliseconds"] if unit else None
            cells.append(
                [
                    sweep,
                    name,
                    f"{rows[0]['value']}–{last['value']}",
                    significant(last["milliseconds"]),
                    figure(beside),
                    figure(exponent(rows)),
                ]
            )
    header = ["grows", "quantity", "from–to", "ms at the end", "gradients there", "exponent"]
    return table(header, cells)


def memory_table(record: Record) -> list[str]:
    """Peaks of the networks' quantities, in megabytes and in a gradient's."""
    cells = [
        [
            row["network"],
            row["quantity"],
            row["library"],
            significant(row["megabytes"]),
            figure(row["gradients"]),
        ]
        for row in record.rows
        if "network" in row
    ]
    return table(["network", "quantity", "library", "MB", "gradients"], cells)


def language_model_table(record: Record) -> list[str]:
    """Peaks of a language model beside a training step's, in megabytes and in tensors of the logits' size above it."""
    rows = [row for row in record.rows if "logits above" in row]
    if not rows:
        return []
    cells = [
        [
            row["problem"],
            row["quantity"],
            significant(row["megabytes"]),
            figure(row["logits above"]),
        ]
        for row in rows
    ]
    return ["", *table(["language model", "quantity", "MB", "[M, C] above the step"], cells)]


#: heading of a column → its cell
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "network": lambda row: row["network"],
    "quantity": lambda row: row["quantity"],
    "library": lambda row: row["library"],
    "backend": lambda row: row["library"],
    "ms": lambda row: significant(row["milliseconds"]),
    "gradients": lambda row: figure(row["gradients"]),
    "quartiles": lambda row: f"{figure(row['lower'])}–{figure(row['upper'])}",
    "MB": lambda row: significant(row.get("megabytes")),
    "MB in a gradient's": lambda row: figure(row.get("memory in gradients")),
    "µs / parameter": lambda row: figure(row["microseconds for each parameter"], 0),
    "Python calls": lambda row: str(row.get("Python calls", "–")),
    "operations": lambda row: str(row.get("operations", "–")),
}
_COST = ("ms", "gradients", "quartiles")


def every_row(record: Record, *columns: str) -> list[str]:
    """A table of all rows, with columns of :data:`_COLUMNS`."""
    return table(list(columns), [[_COLUMNS[name](row) for name in columns] for row in record.rows])


def kronecker_table(record: Record) -> list[str]:
    """Every quantity of Kronecker factors of every network."""
    return every_row(record, "network", "quantity", "library", *_COST)


def kronecker_summary(record: Record) -> list[str]:
    """curvext and curvlinops, in gradients, a column for each network."""
    found = {(r["quantity"], r["network"], r["library"]): r["gradients"] for r in record.rows}
    networks = networks_of(record)
    cells = []
    for quantity in dict.fromkeys(q for q, _, library in found if library == "curvext"):
        row = [quantity]
        for network in networks:
            own, other = (found.get((quantity, network, who)) for who in ("curvext", "curvlinops"))
            cell = "–" if own is None else f"**{figure(own)}**"
            row.append(cell if other is None else f"{cell} · {figure(other)}")
        cells.append(row)
    header = ["in gradients", *(n.upper() for n in networks)]
    return [*table(header, cells), "", "**curvext** · curvlinops."]


def training_table(record: Record) -> list[str]:
    """What each quantity costs in a training step, in time and memory."""
    return every_row(record, "network", "quantity", *_COST, "MB", "MB in a gradient's")


def training_summary(record: Record) -> list[str]:
    """Time · memory of each quantity in those of a gradient, a column for each network."""
    found = {(row["quantity"], row["network"]): row for row in record.rows}
    networks = networks_of(record)
    cells = []
    for quantity in dict.fromkeys(q for q, _ in found if q != "gradient"):
        rows = [found.get((quantity, n), {}) for n in networks]
        pairs = [(row.get("gradients"), row.get("memory in gradients")) for row in rows]
        cells.append([quantity, *(" · ".join(map(figure, pair)) for pair in pairs)])
    header = ["time · memory, in a gradient's", *(n.upper() for n in networks)]
    return [
        *table(header, cells),
        "",
        "A step is a forward pass, losses, and `cx.backward`; opacus, in the same rounds, makes two backward passes.",
    ]


def laplace_table(record: Record) -> list[str]:
    """Every diagonal by every backend, in time and memory."""
    return every_row(record, "network", "quantity", "backend", *_COST, "MB")


def laplace_summary(record: Record) -> list[str]:
    """Time and memory of each backend, a column for each number of samples; or that it did not finish."""
    found = {(r["quantity"], r["library"], r["network"]): r for r in record.rows}
    failed = {
        (f["quantity"], f["library"], f["network"]) for f in record.failures if "network" in f
    }
    networks = list(dict.fromkeys(n for *_, n in [*found, *failed]))
    cells = []
    for quantity, library in dict.fromkeys((q, who) for q, who, _ in [*found, *failed]):
        row = [quantity, library]
        for network in networks:
            at = found.get((quantity, library, network))
            cost = (
                "–"
                if at is None
                else f"{figure(at['gradients'])} · {significant(at['megabytes'])} MB"
            )
            row.append("failed" if (quantity, library, network) in failed else cost)
        cells.append(row)
    rest = ["", "What failed, and why, stands beside the JSON."] if failed else []
    return [*table(["gradients · memory", "backend", *networks], cells), *rest]


def overhead_table(record: Record) -> list[str]:
    """What small networks take: gradients, microseconds for each parameter tensor, and the two counts."""
    counts = ("µs / parameter", "Python calls", "operations")
    return every_row(record, "network", "quantity", "gradients", "quartiles", *counts)


def failures_table(records: Iterable[Record]) -> list[str]:
    """What could not be measured, and why; one row for each reason."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        for failure in record.failures:
            what = failure.get("quantity") or failure.get("form") or "everything"
            where = failure.get("network") or failure.get("kernel") or failure.get("sweep", "")
            if failure.get("mode") == "compiled":
                what += " (compiled)"
            who = failure.get("library", "")
            key = (who, what, failure["reason"].replace("|", "\\|"))
            if where not in grouped.setdefault(key, []):
                grouped[key].append(where)
    cells = [[who, what, ", ".join(at), why] for (who, what, why), at in grouped.items()]
    return table(["library", "what", "where", "why"], cells) if cells else ["Nothing failed."]
