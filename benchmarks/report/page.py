"""docs/performance.md and README's section on speed: written from the JSON alone."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Record, load
from benchmarks.report import pictures, tables

PROJECT = ROOT.parent
PAGE = PROJECT / "docs" / "performance.md"
PICTURES = PROJECT / "docs" / "images"
README = PROJECT / "README.md"
SECTION = re.compile(r"<!-- measured: ([\w-]+) -->\n.*?<!-- end of measured -->\n", re.DOTALL)
SUITES = ("models", "kernels", "scaling", "memory")

METHOD = """\
# Performance

This page is written by `python -m benchmarks report` from the JSON in `benchmarks/results/`, and a test compares
the two. `make bench` measures your machine and writes its part.

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


def machine_lines(machine: str, found: dict[str, Record]) -> list[str]:
    """The part of the page on one machine."""
    memory = found.get("memory")
    folder = f"images/{machine}"
    lines = [f"## {machine}", ""]
    for suite, record in found.items():
        load_words = record.environment.get("load")
        busy = "" if load_words is None else f"; load {load_words} at the start"
        which = "; quantity by quantity" if "fewest_rounds" in record.settings else ""
        if record.settings.get("calls_in_a_row", 1) > 1:
            which += "; the second of two calls in a row counts"
        lines.append(f"* {suite}: {hardware(record)}{busy}{which}")
    lines.append("")
    if models := found.get("models"):
        lines += [
            f"### Whole networks, {machine}",
            "",
            f"![cost in gradients]({folder}/models.svg)",
            "",
        ]
        networks = tables.networks_of(models)
        if any(n not in tables.README_NETWORKS for n in networks):
            lines += [f"![cost in gradients, other networks]({folder}/more-models.svg)", ""]
        words = models.settings.get("networks", {})
        for network in networks:
            lines += [f"**{network}.** {words.get(network, '')}".strip(), ""]
            lines += [*tables.models_table(models, memory, network), ""]
    if kernels := found.get("kernels"):
        top = kernels.settings["limits"]
        lines += [
            f"### Kernels, {machine}",
            "",
            f"Copy {tables.significant(top['copy GB/s'])} GB/s, "
            f"GEMM {tables.significant(top['GEMM GFLOP/s'])} GFLOP/s.",
            "",
            f"![share of the hardware's floor]({folder}/kernels.svg)",
            "",
        ]
        for kernel in dict.fromkeys(row["kernel"] for row in kernels.rows):
            lines += [f"**{kernel}**", "", *tables.kernels_table(kernels, memory, kernel), ""]
    if scaling := found.get("scaling"):
        lines += [f"### Growth, {machine}", ""]
        lines += [f"* {sweep}: {words}" for sweep, words in scaling.settings["sweeps"].items()]
        lines += [
            "",
            f"![milliseconds against what grows]({folder}/scaling.svg)",
            "",
            "The dotted line is linear growth. The exponent is that between the last two points.",
            "",
            *tables.scaling_table(scaling),
            "",
        ]
    if memory:
        lines += [f"### Memory, {machine}", "", f"![peak memory]({folder}/memory.svg)", ""]
        lines += [*tables.memory_table(memory), *tables.language_model_table(memory), ""]
    lines += [f"### Not measured, {machine}", "", *tables.failures_table(found.values()), ""]
    return lines


def performance() -> str:
    """docs/performance.md."""
    lines = [METHOD]
    for machine in machines():
        lines += machine_lines(machine, records(machine))
    return "\n".join(lines)


def readme_section(machine: str) -> str:
    """README's part between its two marks, which name the machine."""
    models = records(machine)["models"]
    words = models.settings.get("networks", {})
    described = " ".join(words[n] for n in tables.README_NETWORKS if n in words)
    picture = f"docs/images/{machine}/models.svg"
    others = any(row["library"] not in ("curvext", "torch") for row in models.rows)
    lines = [f"<!-- measured: {machine} -->", f"![cost in gradients]({picture})", ""]
    lines += [*tables.readme_table(models), ""]
    if others:
        lines.append(
            f"**curvext** · the fastest other way, compiled ones included, whose error is below {tables.WRONG:g}."
        )
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
    paths = [p for m in machines() for p in pictures.draw(records(m), PICTURES / m)]
    PAGE.write_text(performance())
    README.write_text(SECTION.sub(lambda _: readme_section(machine), README.read_text()))
    return [*paths, PAGE, README]
