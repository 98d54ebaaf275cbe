"""The picture of the demo: four panels, one PNG."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from measures import Checkpoint, Timing

COLOURS = {"H": "#b5432e", "G = F": "#1f5f8b", "F_emp": "#d39b22"}


def draw(
    path: str,
    steps: Sequence[int],
    losses: Sequence[float],
    checkpoints: Sequence[Checkpoint],
    timings: Sequence[Timing],
) -> None:
    """Writes the picture to ``path``."""
    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
        }
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    figure.suptitle("One network, three matrices that are often taken for one another", fontsize=12)
    _training(axes[0, 0], steps, losses, checkpoints)
    _spectra(axes[0, 1], checkpoints)
    _distances(axes[1, 0], checkpoints)
    _timings(axes[1, 1], timings)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _training(
    axes: plt.Axes,
    steps: Sequence[int],
    losses: Sequence[float],
    checkpoints: Sequence[Checkpoint],
) -> None:
    axes.plot(steps, losses, color="0.35", lw=1.3)
    for c in checkpoints:
        axes.plot(c.step, c.comparison.value, "o", color="black", ms=5)
        axes.annotate(
            f"{c.name}\n‖∇L‖ = {c.comparison.gradient_norm:.2g}",
            (c.step, c.comparison.value),
            xytext=(0, 36) if c is checkpoints[-1] else (8, 4),
            textcoords="offset points",
            ha="right" if c is checkpoints[-1] else "left",
        )
    axes.set(xlabel="step of Adam", ylabel="loss on the training images", yscale="log")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.6)
    axes.set_title("Training, and where the matrices were compared")


def _spectra(axes: plt.Axes, checkpoints: Sequence[Checkpoint]) -> None:
    shift = {"H": -0.24, "G = F": 0.0, "F_emp": 0.24}
    for at, c in enumerate(checkpoints):
        for matrix, (low, high) in c.spectra.items():
            values = torch.cat([low.values, high.values]).numpy()
            axes.plot(
                np.full(len(values), at + shift[matrix]),
                values,
                "_",
                color=COLOURS[matrix],
                ms=13,
                mew=1.6,
                label=matrix if at == 0 else None,
            )
    axes.axhline(0, color="0.7", lw=0.8, zorder=0)
    axes.set_yscale("symlog", linthresh=1e-2, linscale=0.6)
    axes.set_xticks(range(len(checkpoints)), [c.name for c in checkpoints])
    axes.set(ylabel="eigenvalue")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.0))
    axes.set_ylim(top=axes.get_ylim()[1] * 6)
    axes.set_title("Both ends of the spectra")


def _distances(axes: plt.Axes, checkpoints: Sequence[Checkpoint]) -> None:
    at = np.arange(len(checkpoints))
    bars = [
        (-0.19, [c.hessian_to_ggn for c in checkpoints], COLOURS["H"], "‖H − G‖ / ‖G‖"),
        (
            0.19,
            [c.ggn_to_empirical for c in checkpoints],
            COLOURS["F_emp"],
            "‖G − F_emp‖ / ‖G‖",
        ),
    ]
    for shift, estimates, colour, label in bars:
        values = [float(e.value) for e in estimates]
        errors = [float(e.standard_error) for e in estimates]
        axes.bar(at + shift, values, 0.36, yerr=errors, color=colour, capsize=3, label=label)
        for x, value, error in zip(at + shift, values, errors, strict=True):
            axes.annotate(
                f"{value:.2f}",
                (x, value + error),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
            )
    axes.set_xticks(at, [c.name for c in checkpoints])
    axes.set_ylim(top=axes.get_ylim()[1] * 1.18)
    axes.legend(frameon=False, loc="upper center", ncols=2)
    axes.set_title("Relative distances (Frobenius norm, ± standard error)")


def _timings(axes: plt.Axes, timings: Sequence[Timing]) -> None:
    unit = timings[0].median
    colours = ["0.6", "#1f5f8b", "#9db8c9"]
    names = [t.name.replace(", chunks", ",\nchunks") for t in timings]
    for at, (t, colour) in enumerate(zip(timings, colours, strict=True)):
        ends = [[(t.median - t.fastest) / unit], [(t.slowest - t.median) / unit]]
        axes.barh(at, t.median / unit, 0.6, xerr=ends, color=colour, capsize=3)
        axes.annotate(
            f"{t.median / unit:.2f} × ({t.median * 1e3:.0f} ms)",
            (t.slowest / unit, at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(timings)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(t.slowest for t in timings) / unit * 1.35)
    axes.set(xlabel="in units of one gradient (median; whiskers: fastest, slowest)")
    axes.set_title("The Fisher diagonal, exact, timed on this machine")
