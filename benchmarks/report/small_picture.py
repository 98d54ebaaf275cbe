"""README's picture: the rows of its table as bars, curvext beside the fastest other library."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import Record
from benchmarks.report.pictures import COLOURS, plot, save
from benchmarks.report.tables import README_NETWORKS, README_ROWS, fastest_other, gradients


def small_picture(record: Record, path: Path) -> Path:
    """One panel for each of README's networks, one pair of bars for each row of its table."""
    found = gradients(record)
    figure, axes = plot().subplots(1, len(README_NETWORKS), figsize=(8.4, 2.3), sharey=True)
    for ax, network in zip(axes, README_NETWORKS, strict=True):
        for at, (_, quantity, mode) in enumerate(README_ROWS):
            own = found.get((network, quantity, "curvext", mode))
            other = fastest_other(record, network, quantity)
            for row, name, shift in ((own, "curvext", -0.2), (other, "torch.func", 0.2)):
                if row is not None:
                    length = row["gradients"]
                    ax.barh(at + shift, length, height=0.38, color=COLOURS[name], linewidth=0)
        ax.axvline(1, color="black", linewidth=0.6)
        ax.set_title(network.upper(), fontsize=9)
        ax.set_xlabel("gradients", fontsize=8)
        ax.tick_params(labelsize=8, length=2)
    axes[0].set_yticks(range(len(README_ROWS)), [words for words, _, _ in README_ROWS])
    axes[0].invert_yaxis()
    bars = [plot().Rectangle((0, 0), 1, 1, color=COLOURS[n]) for n in ("curvext", "torch.func")]
    figure.legend(
        bars,
        ["curvext", "the fastest other library"],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncol=2,
        frameon=False,
        fontsize=8,
    )
    figure.tight_layout()
    return save(figure, path)
