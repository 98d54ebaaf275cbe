"""docs/performance.md, a page of all figures beside each machine's JSON, and README's section: from the JSON alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Record, load
from benchmarks.report import pictures, tables
from benchmarks.report.small_picture import small_picture

PROJECT = ROOT.parent
PAGE = PROJECT / "docs" / "performance.md"
PICTURES = PROJECT / "docs" / "images"
README = PROJECT / "README.md"
SECTION = re.compile(r"<!-- measured: ([\w-]+) -->\n.*?<!-- end of measured -->\n", re.DOTALL)
SUITES = (
    "models",
    "kernels",
    "scaling",
    "memory",
    "training",
    "laplace",
    "kronecker",
    "overhead",
)

METHOD = """\
# Performance

Written by `python -m benchmarks report` from the JSON in `benchmarks/results/`; a test compares the two. `make bench`
measures your machine. Every figure, with quartiles, errors, other libraries' rows and failures, stands beside the JSON
of its machine: {links}.

What is compared runs in one process, in interleaved rounds after a warm-up; medians are given. The unit is one gradient
(forward and backward) of the same rounds. Other libraries are used in their best documented mode, eager and compiled.
"Kept" is every product after the first: curvext keeps the linearisation. All other rows work from scratch.
"""

DETAILS = """\
# Measured on {machine}

Written by `python -m benchmarks report` from the JSON in this folder.

What is compared runs in one process, in interleaved rounds after a warm-up; medians are given with their quartiles.
The unit is one gradient (forward and backward) of the same rounds, which are those of one quantity where a record says
"quantity by quantity", and of one network elsewhere. Each library is used in its best documented mode,
in exact arithmetic where it offers both, eager and through `torch.compile`. "Kept" is every product after the
first: the linearisation is kept, which no other library does; all other rows work from scratch. curvext's compiled
rows are products with `compile=True` after the first, whose trace and compilation they leave out. A block V has
several columns, and its figure is for one of them. A Lanczos run includes its linearisation. The error is relative,
‖x − x₆₄‖/‖x₆₄‖, beside plain PyTorch in float64: double backward for products, `torch.func` for samples, single
entries e_iᵀ G e_i for the diagonal of G. curvlinops counts each token as a datum of its own in F_emp, and is
compared with that matrix. Peak memory is taken in a process of its own, above what model and data take, in units of
a gradient's peak. Of a language model the peak of a training step stands beside those of products with G from scratch,
and how far they lie above it in tensors of the logits' size, M positions times C words.

A kernel's floor is the longer of two times: its FLOPs at the GEMM rate, and the bytes it must read and write at the
copy bandwidth, both measured in the same run. More than 100 % means that the data lay in cache, or that the product
runs faster than the square one that the rate was measured on. "bound" rows compute something else of the same size.
"""


def machines() -> list[str]:
    """Folders of results, by name, those of another dtype within a machine's too; quick runs are no evidence."""
    folders = {path.parent.relative_to(RESULTS) for path in RESULTS.glob("**/*.json")}
    return sorted(str(folder) for folder in folders if folder.parts[0] != "quick")


def records(machine: str) -> dict[str, Record]:
    """The suites that were measured on a machine."""
    folder = RESULTS / machine
    return {s: load(folder / f"{s}.json") for s in SUITES if (folder / f"{s}.json").is_file()}


def hardware(record: Record) -> str:
    """Where a record was measured, in one sentence."""
    at = record.environment
    where = at.get("gpu") or f"{at['threads']} threads of {at['processor']}"
    if at.get("architecture") and not at.get("gpu"):
        where += f" ({at['architecture']})"
    changed = " with changes" if at["commit"].endswith("changes") else ""
    versions = [f"torch {at['torch']}"]
    versions += [f"{k} {v}" for k, v in (at.get("packages") or {}).items() if v and k != "numpy"]
    return f"{where}; {', '.join(versions)}; commit {at['commit'][:12]}{changed}"


def details(machine: str) -> str:
    """All figures of one machine: its folder's README.md."""
    found = records(machine)
    memory = found.get("memory")
    lines = [DETAILS.format(machine=machine)]
    for suite, record in found.items():
        which = "; quantity by quantity" if "fewest_rounds" in record.settings else ""
        if record.settings.get("calls_in_a_row", 1) > 1:
            which += "; the second of two calls in a row counts"
        lines.append(f"* {suite}: {hardware(record)}{load_of(record)}{which}")
    lines.append("")
    if models := found.get("models"):
        lines += ["## Whole networks", ""]
        words = models.settings.get("networks", {})
        for network in tables.networks_of(models):
            lines += [f"**{network}.** {words.get(network, '')}".strip(), ""]
            lines += [*tables.models_table(models, memory, network), ""]
    if kernels := found.get("kernels"):
        lines += ["## Kernels", "", hardware_limits(kernels), ""]
        for kernel in dict.fromkeys(row["kernel"] for row in kernels.rows):
            lines += [f"**{kernel}**", "", *tables.kernels_table(kernels, memory, kernel), ""]
    if scaling := found.get("scaling"):
        lines += ["## Growth", ""]
        lines += [f"* {sweep}: {words}" for sweep, words in scaling.settings["sweeps"].items()]
        lines += ["", "The exponent is that between the last two points.", ""]
        lines += [*tables.scaling_table(scaling), ""]
    if memory:
        lines += ["## Memory", ""]
        lines += [*tables.memory_table(memory), *tables.language_model_table(memory), ""]
    if training := found.get("training"):
        lines += ["## A training step", "", *tables.training_table(training), ""]
    if laplace := found.get("laplace"):
        lines += ["## Backends of laplace-torch", "", *tables.laplace_table(laplace), ""]
    if kronecker := found.get("kronecker"):
        lines += ["## Kronecker factors", "", *tables.kronecker_table(kronecker), ""]
    if overhead := found.get("overhead"):
        lines += ["## The library's own cost", "", *tables.overhead_table(overhead), ""]
    lines += ["## Not measured", "", *tables.failures_table(found.values()), ""]
    return "\n".join(lines)


def hardware_limits(kernels: Record) -> str:
    top = kernels.settings["limits"]
    return (
        f"Copy {tables.significant(top['copy GB/s'])} GB/s, "
        f"GEMM {tables.significant(top['GEMM GFLOP/s'])} GFLOP/s."
    )


def performance() -> str:
    """docs/performance.md: what the machine of README showed, and where the rest is."""
    latest = quoted()
    found = records(latest)
    ordered = [latest, *(machine for machine in machines() if machine != latest)]
    links = ", ".join(f"`benchmarks/results/{machine}/README.md`" for machine in ordered)
    models = found["models"]
    lines = [METHOD.format(links=links), f"## Whole networks on {latest}", ""]
    lines += [f"float32, {hardware(models)}.", "", "![cost in gradients](images/models.svg)", ""]
    lines += [*tables.summary_table(models), "", beside_others(models), ""]
    if kernels := found.get("kernels"):
        lines += ["## Kernels", "", hardware_limits(kernels), ""]
        lines += [
            "A kernel's floor is the longer of two times: its FLOPs at the GEMM rate, its bytes at the copy bandwidth."
        ]
        lines += ["Medians over the cases, with the least and the most.", ""]
        lines += ["![share of the hardware's floor](images/kernels.svg)", ""]
        lines += [*tables.kernels_summary(kernels), ""]
    if scaling := found.get("scaling"):
        lines += [
            "## Growth",
            "",
            "The power of what grows by which time grows, between the last two points: 1 is linear.",
            "",
        ]
        lines += ["![milliseconds against what grows](images/scaling.svg)", ""]
        lines += [*tables.scaling_summary(scaling), ""]
    if memory := found.get("memory"):
        lines += ["## Memory", "", "![peak memory](images/memory.svg)", ""]
        lines += [*tables.memory_summary(memory), *tables.language_model_table(memory), ""]
    lines += section("A training step", "training", ordered, tables.training_summary)
    lines += section("Backends of laplace-torch", "laplace", ordered, tables.laplace_summary)
    lines += section("Kronecker factors", "kronecker", ordered, tables.kronecker_summary)
    return "\n".join(lines)


def section(
    title: str, suite: str, ordered: list[str], summary: Callable[[Record], list[str]]
) -> list[str]:
    """The part of the page on a suite that README's machine need not have: from the first one that has."""
    lines = [f"## {title}", ""]
    measured = [machine for machine in ordered if suite in records(machine)]
    if not measured:
        return [*lines, f"Not measured: `python -m benchmarks {suite}` does it.", ""]
    record = records(measured[0])[suite]
    return [
        *lines,
        f"On {measured[0]}: {hardware(record)}{load_of(record)}.",
        "",
        *summary(record),
        "",
    ]


def load_of(record: Record) -> str:
    """How busy the machine was when a record began, where that was looked at."""
    load = record.environment.get("load")
    return "" if load is None else f"; load {load} at the start"


def beside_others(models: Record) -> str:
    """What the numbers of the table are."""
    return (
        "**curvext** · the fastest other way, compiled ones included, whose error is below "
        f"{tables.WRONG:g}."
        if others(models)
        else "**curvext**."
    )


def others(models: Record) -> bool:
    return any(row["library"] not in ("curvext", "torch") for row in models.rows)


def readme_section(machine: str) -> str:
    """README's part between its two marks, which name the machine."""
    models = records(machine)["models"]
    words = models.settings.get("networks", {})
    described = " ".join(words[n] for n in tables.README_NETWORKS if n in words)
    picture = "docs/images/readme.svg"
    lines = [f"<!-- measured: {machine} -->", f"![cost in gradients]({picture})", ""]
    lines += [*tables.summary_table(models, tables.README_ROWS), ""]
    if others(models):
        lines.append(beside_others(models))
    lines.append(f"float32, {hardware(models)}.")
    if described:
        lines.append(described)
    return "\n".join([*lines, "<!-- end of measured -->", ""])


def quoted() -> str:
    """The machine that README quotes."""
    found = SECTION.search(README.read_text())
    if not found:
        raise ValueError("benchmarks report: README.md has lost its marks <!-- measured: … -->")
    return found.group(1)


def write(readme: str | None) -> list[Path]:
    """Pictures, the page, and README's section for the machine it quotes, or for ``readme``.

    Raises:
        ValueError: no whole networks were measured on that machine.
    """
    machine = readme or quoted()
    if "models" not in (records(machine) if machine in machines() else {}):
        raise ValueError(
            f"benchmarks report: no models.json of {machine!r}; there are {', '.join(machines())}"
        )
    README.write_text(SECTION.sub(lambda _: readme_section(machine), README.read_text()))
    PAGE.write_text(performance())
    pages = {RESULTS / name / "README.md": details(name) for name in machines()}
    for path, text in pages.items():
        path.write_text(text)
    drawn = pictures.draw(records(machine), PICTURES)
    drawn.append(small_picture(records(machine)["models"], PICTURES / "readme.svg"))
    return [*drawn, *pages, PAGE, README]
