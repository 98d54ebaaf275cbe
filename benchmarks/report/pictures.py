"""Pictures of records: bars of ratios, curves of growth, memory. The same JSON gives the same bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.record import Record
from benchmarks.report.tables import README_NETWORKS, curves, gradients, order

COLOURS = {
    "curvext, kept": "#0b6e4f",
    "curvext": "#35a67c",
    "torch (double backward)": "#8d99ae",
    "torch.func": "#5c677d",
    "curvlinops": "#e07a5f",
    "hessian-eigenthings": "#f2cc8f",
    "BackPACK": "#9d4edd",
    "opacus": "#3d5a80",
    "torch": "#bbbbbb",
}


#: curvext's bars, in their order
OWN = ("curvext, kept, compiled", "curvext, kept", "curvext, compiled", "curvext")


def plot() -> Any:
    """matplotlib, set up to write the same SVG each time."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "benchmarks report: pictures need matplotlib: pip install -e '.[report]'"
        ) from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.hashsalt": "curvext",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return plt


def plain_log(axis: Any, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plot().close(figure)
    path.write_text(compact(path.read_text()))
    return path


def compact(svg: str) -> str:
    """The same picture without comments, without lines within elements, and with numbers to a hundredth of a point."""
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"(?<![\w#])-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), svg
    )
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\s+", " ", tag[0]), svg)
    return re.sub(r">\s+<", ">\n<", svg)


def bars(record: Record, networks: list[str], quantities: list[str]) -> list[tuple[str, str, dict]]:
    """(network, quantity, {who: row}) with curvext's kept and fresh products under one quantity."""
    found = []
    for network in networks:
        for quantity in quantities:
            here: dict[str, Any] = {}
            for (n, q, library, mode), row in gradients(record).items():
                if n != network or q.removesuffix(" kept") != quantity:
                    continue
                who = library + (", kept" if q.endswith(" kept") else "")
                who += ", compiled" if mode == "compiled" else ""
                here[who] = row
            if here:
                found.append((network, quantity, here))
    return found


def place(who: str) -> tuple[int, str]:
    """curvext first, what is kept before what is made from scratch."""
    return (OWN.index(who) if who in OWN else len(OWN), who)


def ratio_bars(record: Record, networks: list[str], path: Path) -> Path:
    """Cost in gradients of every library, a panel for each network; the scale is logarithmic."""
    plt = plot()
    kinds = {q.removesuffix(" kept") for (_, q, _, _) in gradients(record)} - {"gradient"}
    quantities = sorted((q for q in kinds if not q.startswith("Lanczos")), key=order)
    groups = bars(record, networks, quantities)
    panels = [[g for g in groups if g[0] == network] for network in networks]
    heights = [sum(len(here) + 0.8 for _, _, here in panel) for panel in panels]
    figure, axes = plt.subplots(
        1, len(networks), figsize=(4.2 * len(networks), 0.14 * max(heights) + 0.8), squeeze=False
    )
    labels: dict[str, Any] = {}
    for ax, network, panel in zip(axes[0], networks, panels, strict=True):
        at, ticks = 0.0, []
        for _, quantity, here in panel:
            start = at
            for who, row in sorted(here.items(), key=lambda item: place(item[0])):
                colour = COLOURS.get(who.removesuffix(", compiled"), "#444444")
                bar = ax.barh(
                    at,
                    row["gradients"],
                    height=0.9,
                    color=colour,
                    hatch="///" if who.endswith("compiled") else None,
                    edgecolor="white",
                    linewidth=0,
                    xerr=[
                        [max(row["gradients"] - row["lower"], 0)],
                        [max(row["upper"] - row["gradients"], 0)],
                    ],
                    error_kw={"linewidth": 0.6, "ecolor": "#222222"},
                )
                labels.setdefault(who, bar)
                at += 1
            ticks.append((0.5 * (start + at - 1), quantity))
            at += 0.8
        ax.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
        ax.invert_yaxis()
        ax.set_xscale("log")
        plain_log(ax.xaxis)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(network)
        ax.set_xlabel("gradients (log scale; shorter is better)")
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=4,
        frameon=False,
    )
    figure.tight_layout()
    return save(figure, path)


def scaling_curves(record: Record, path: Path) -> Path:
    """Milliseconds against what grows, both logarithmic, with the slope of linear growth."""
    plt = plot()
    sweeps = curves(record)
    across = min(4, len(sweeps))
    down = -(-len(sweeps) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.4 * across, 2.9 * down), squeeze=False)
    flat = [ax for line in axes for ax in line]
    for ax in flat[len(sweeps) :]:
        ax.set_visible(False)
    for ax, (sweep, by_name) in zip(flat, sweeps.items(), strict=False):
        x = "parameters" if sweep == "P" else "value"
        for name, rows in by_name.items():
            xs, ys = [row[x] for row in rows], [row["milliseconds"] for row in rows]
            style = "--" if "(" in name else "-"
            ax.plot(xs, ys, style, marker="o", markersize=2.5, linewidth=1, label=name)
        longest = max(by_name.values(), key=lambda rows: rows[-1]["milliseconds"])
        right, high = longest[-1][x], longest[-1]["milliseconds"]
        left = longest[0][x]
        ax.plot([left, right], [high * left / right, high], ":", color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_log(ax.xaxis, (1,))
        plain_log(ax.yaxis, (1,))
        ax.set_xlabel(sweep)
        ax.set_ylabel("milliseconds")
        ax.legend(fontsize=5.5, frameon=False)
    figure.tight_layout()
    return save(figure, path)


def memory_bars(record: Record, path: Path) -> Path:
    """Peak memory in gradients' peaks, a panel for each network."""
    plt = plot()
    rows = [row for row in record.rows if "network" in row]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    tallest = max(sum(row["network"] == n for row in rows) for n in networks)
    figure, axes = plt.subplots(
        1, len(networks), figsize=(4.6 * len(networks), 0.17 * tallest + 0.8), squeeze=False
    )
    for ax, network in zip(axes[0], networks, strict=True):
        here = [row for row in rows if row["network"] == network and row["quantity"] != "gradient"]
        here.sort(key=lambda row: (order(row["quantity"]), row["library"] != "curvext"))
        names = [f"{row['quantity']} · {row['library']}" for row in here]
        colours = [COLOURS.get(row["library"], "#444444") for row in here]
        ax.barh(range(len(here)), [row["gradients"] for row in here], color=colours)
        ax.set_yticks(range(len(here)), names, fontsize=6.5)
        ax.invert_yaxis()
        ax.set_xscale("log")
        plain_log(ax.xaxis)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(network)
        ax.set_xlabel("peak memory in a gradient's")
    figure.tight_layout()
    return save(figure, path)


def kernel_bars(record: Record, path: Path) -> Path:
    """Share of the hardware's floor of each kernel and of its plain form, problem by problem."""
    plt = plot()
    kernels = list(dict.fromkeys(row["kernel"] for row in record.rows))
    across = min(3, len(kernels))
    down = -(-len(kernels) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.4 * across, 2.6 * down), squeeze=False)
    flat = [ax for line in axes for ax in line]
    for ax in flat[len(kernels) :]:
        ax.set_visible(False)
    shown = {"kernel": "#0b6e4f", "eager": "#8d99ae", "compiled": "#e07a5f"}
    for ax, kernel in zip(flat, kernels, strict=False):
        rows = [r for r in record.rows if r["kernel"] == kernel and r.get("of floor") is not None]
        problems = list(dict.fromkeys(row["problem"] for row in rows))
        for offset, (form, colour) in enumerate(shown.items()):
            share = {row["problem"]: row["of floor"] for row in rows if row["form"] == form}
            ax.barh(
                [y + 0.27 * (offset - 1) for y, p in enumerate(problems) if p in share],
                [100 * share[p] for p in problems if p in share],
                height=0.26,
                color=colour,
                label=form,
            )
        ax.axvline(100, color="black", linewidth=0.8)
        ax.set_yticks(range(len(problems)), problems, fontsize=6)
        ax.invert_yaxis()
        ax.set_title(kernel, fontsize=9)
        ax.set_xlabel("% of the floor")
    flat[0].legend(fontsize=6, frameon=False)
    figure.tight_layout()
    return save(figure, path)


def draw(records: dict[str, Record], folder: Path) -> list[Path]:
    """One picture for each suite of a machine: of the networks those that README shows."""
    paths = []
    if models := records.get("models"):
        networks = list(dict.fromkeys(row["network"] for row in models.rows))
        chosen = [n for n in README_NETWORKS if n in networks] or networks
        paths.append(ratio_bars(models, chosen, folder / "models.svg"))
    if kernels := records.get("kernels"):
        paths.append(kernel_bars(kernels, folder / "kernels.svg"))
    if scaling := records.get("scaling"):
        paths.append(scaling_curves(scaling, folder / "scaling.svg"))
    if memory := records.get("memory"):
        paths.append(memory_bars(memory, folder / "memory.svg"))
    return paths
