"""Train a small network on handwritten digits and look at the curvature of its loss on the way.

    python examples/digits.py            (or: make demo)

A convolutional network with 3,658 parameters learns the 1,797 images of scikit-learn's digits in a
few seconds. At the start, when the loss has halved, and at the end, four matrices are compared:

    H      the Hessian of the loss,
    G      the generalized Gauss-Newton matrix, Jᵀ H_ℓ J,
    F      the Fisher matrix; for softmax cross-entropy F = G exactly, so it is not computed twice,
    F_emp  the empirical Fisher matrix, the mean of g_n g_nᵀ over the true labels' gradients.

What to see:

* H has negative eigenvalues, also at the end; G and F_emp have none but rounding. So H is no
  metric, and a Newton step with it need not be a descent step.
* H − G, the curvature of the network itself, is weighted by the residuals. It is larger than G at
  the start and shrinks beside it as the network fits the data.
* F_emp is not F. Its labels are the data's, those of F are the model's own. A network that has
  fitted its data is hardly ever surprised by a true label, so F_emp shrinks much faster than F.
* A vanishing gradient is what makes a point critical; without it no eigenvalue says "minimum".
* The diagonal of F_emp is exact without storing a per-sample gradient; the last table times
  it. The network is tiny, so calls rather than arithmetic make up much of these times.

No P×P matrix is ever formed: eigenvalues come from Lanczos, norms from random probes (each with its
standard error), all from products. The picture is written to demo.png.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch
from measures import Checkpoint, Timing, diagonal_timings
from picture import draw
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import curvext as cx
from curvext.__main__ import describe

SEED = 0
EPOCHS = 40
BATCH = 64
EIGENVALUES = 9  # at each end; a softmax of 10 classes has 9 free directions
TOLERANCE = 1e-4  # of eigenvalues, relative to the largest
PROBES = 16
CRITICAL = 1e-4  # a gradient norm under this counts as zero
PICTURE = "demo.png"
LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Training:
    """The loss on all training images after every epoch, and the states to compare."""

    steps: list[int]
    losses: list[float]
    states: dict[str, tuple[int, dict[str, Tensor]]]  # name → (step, parameters)


def network() -> nn.Module:
    """8×8 pixels in, ten logits out; smooth, so that second derivatives exist everywhere."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Three quarters of the digits to train on, the rest to test on; shuffled by a fixed seed."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    cut = 3 * len(x) // 4
    train, test = order[:cut], order[cut:]
    return (x[train], y[train]), (x[test], y[test])


class Progress:
    """A bar on a terminal; elsewhere a line every quarter of the way."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        terminal = sys.stdout.isatty()
        self._bar = tqdm(desc=what, total=total, leave=False, file=sys.stdout) if terminal else None

    def step(self, note: str) -> None:
        """One of ``total`` steps is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
            if self._done == self._total:
                self._bar.close()
        elif 4 * self._done // self._total > 4 * (self._done - 1) // self._total:
            print(f"{self._what}: {self._done}/{self._total}  {note}", flush=True)


def train(model: nn.Module, x: Tensor, y: Tensor) -> Training:
    """Adam on mini-batches; keeps the parameters at the start, at half the loss and at the end."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    shuffle = torch.Generator().manual_seed(SEED)
    steps, losses = [0], [_value(model, x, y)]
    states = {"start": (0, _copy(model))}
    bar = Progress("training", EPOCHS)
    for _ in range(EPOCHS):
        batches = torch.randperm(len(x), generator=shuffle).split(BATCH)
        for batch in batches:
            optimiser.zero_grad()
            LOSS(model(x[batch]), y[batch]).backward()
            optimiser.step()
        steps.append(steps[-1] + len(batches))
        losses.append(_value(model, x, y))
        if "half the loss" not in states and losses[-1] < losses[0] / 2:
            states["half the loss"] = (steps[-1], _copy(model))
        bar.step(f"loss {losses[-1]:.4f}")
    states["end"] = (steps[-1], _copy(model))
    return Training(steps, losses, states)


def _value(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(LOSS(model(x), y))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def measure(
    name: str,
    state: tuple[int, dict[str, Tensor]],
    train_set: tuple[Tensor, Tensor],
    test_set: tuple[Tensor, Tensor],
    bar: Progress,
) -> Checkpoint:
    """Everything about one state; in float64, to tell a zero eigenvalue from a small one."""
    step, parameters = state
    model = network().double()
    model.load_state_dict(parameters)
    x, y = train_set[0].double(), train_set[1]
    risk = cx.EmpiricalRisk(model, LOSS, (x, y))
    G, E = risk.ggn(), risk.empirical_fisher()
    spectra = {}
    for matrix, operator in {"H": risk.hessian(), "G = F": G, "F_emp": E}.items():
        high = cx.eigsh(operator, EIGENVALUES, "LA", SEED, TOLERANCE, verify=False)
        bar.step(f"{name}: {matrix}, largest eigenvalues")
        count = EIGENVALUES if matrix == "H" else 1
        low = cx.eigsh(operator, count, "SA", SEED, TOLERANCE, ncv=40, verify=False)
        bar.step(f"{name}: {matrix}, smallest eigenvalues")
        spectra[matrix] = (low, high)
    three = ("H", "G", "F_emp")  # F is G here
    apart = cx.compare(risk, EIGENVALUES, PROBES, seed=SEED, matrices=three)
    bar.step(f"{name}: distances")
    with torch.no_grad():
        accuracy = float((model(test_set[0].double()).argmax(1) == test_set[1]).double().mean())
    return Checkpoint(name, step, accuracy, spectra, apart, float(E.trace() / G.trace()))


# ---------------------------------------------------------------------------- words and tables


def verdict(c: Checkpoint) -> str:
    """A description of one state, decided by measured numbers."""
    (h_low, h_high), (g_low, g_high), _ = c.spectra.values()
    least, most = h_low.values[0], h_high.values[-1]
    norm = c.comparison.gradient_norm
    words = [f"{'critical' if norm <= CRITICAL else 'not critical'}: gradient norm {norm:.2g}"]
    if least < -h_low.residuals[0]:
        words.append(f"H is indefinite, λmin = {least:.2g} beside λmax = {most:.3g}")
    else:
        words.append(f"no negative eigenvalue of H was found, λmin = {least:.2g}")
    zero = max(g_low.residuals[0], 1e-12 * g_high.values[-1])
    psd = g_low.values[0] >= -zero
    sign = "positive semidefinite" if psd else "NOT positive semidefinite"
    words.append(f"G is {sign}, λmin = {g_low.values[0]:.1g} ± {zero:.0g}")
    gap, off = float(c.hessian_to_ggn.value), float(c.ggn_to_empirical.value)
    near = "H ≈ G" if c.comparison.equalities[0].near else "H is not G"
    words.append(f"{near}, they are {gap:.2f} ‖G‖ apart")
    if c.trace_ratio < 0.9:
        why = (
            f"surprise the network less than its own would: its trace is {c.trace_ratio:.2g} of F's"
        )
    elif c.trace_ratio > 1.1:
        why = (
            f"surprise the network more than its own would: its trace is {c.trace_ratio:.2g} of F's"
        )
    else:
        why = f"are not the network's: a trace alike ({c.trace_ratio:.2f} of F's), other directions"
    words.append(f"F_emp is not F ({off:.2f} ‖F‖ apart) because the true labels {why}")
    return ";\n    ".join(words) + "."


def table(header: list[str], rows: list[list[str]]) -> str:
    """Rows aligned under their header: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  " + "  ".join([cells[0].ljust(widths[0]), *rest])

    return "\n".join([line(header), "  " + "  ".join("─" * w for w in widths), *map(line, rows)])


def report(checkpoints: list[Checkpoint]) -> None:
    """The tables and verdicts of all states."""
    print("\nThe network on its way")
    print(
        table(
            ["state", "step", "loss", "test accuracy", "‖∇L‖"],
            [
                [
                    c.name,
                    str(c.step),
                    f"{c.comparison.value:.4f}",
                    f"{c.accuracy:.1%}",
                    f"{c.comparison.gradient_norm:.2e}",
                ]
                for c in checkpoints
            ],
        )
    )
    print("\nHow far apart (Frobenius norms, random probes, ± standard error)")
    print(
        table(
            ["state", "‖H − G‖/‖G‖", "‖G − F_emp‖/‖G‖", "tr F_emp / tr F", "‖H⁻‖²/‖H‖² at least"],
            [
                [
                    c.name,
                    *(
                        f"{float(e.value):.3f} ± {float(e.standard_error):.3f}"
                        for e in (c.hessian_to_ggn, c.ggn_to_empirical)
                    ),
                    f"{c.trace_ratio:.3f}",
                    f"{c.negative_share:.2%}",
                ]
                for c in checkpoints
            ],
        )
    )
    print(f"  ‖H⁻‖² is the negative part of H, here its {EIGENVALUES} lowest eigenvalues alone.")
    print(
        "\nExtreme eigenvalues, and the residual ‖A x − λ x‖ of each (A x = λ x solved this well)"
    )
    print(
        table(
            ["state", "matrix", "smallest", "residual", "largest", "residual"],
            [
                [
                    c.name,
                    matrix,
                    f"{low.values[0]:+.3e}",
                    f"{low.residuals[0]:.0e}",
                    f"{high.values[-1]:+.3e}",
                    f"{high.residuals[-1]:.0e}",
                ]
                for c in checkpoints
                for matrix, (low, high) in c.spectra.items()
            ],
        )
    )
    print("\nIn words")
    for c in checkpoints:
        print(f"  {c.name}:\n    {verdict(c)}")


def report_timings(timings: list[Timing], samples: int, rounds: int) -> None:
    """The table of the Fisher diagonal's timing."""
    unit = timings[0].median
    print(f"\nThe diagonal of F_emp over {samples} images, float32, {rounds} interleaved rounds")
    print(
        table(
            ["", "median", "fastest", "gradients", "max error to float64"],
            [
                [
                    t.name,
                    f"{t.median * 1e3:.1f} ms",
                    f"{t.fastest * 1e3:.1f} ms",
                    f"{t.median / unit:.2f} ×",
                    "" if t.error is None else f"{t.error:.0e}",
                ]
                for t in timings
            ],
        )
    )


def main() -> None:
    begin = time.perf_counter()
    torch.manual_seed(SEED)
    # so small a network gains little from a second thread, and loses much where a core is busy
    torch.set_num_threads(1)
    print(describe(), end="\n\n")
    train_set, test_set = images()
    model = network()
    count = sum(p.numel() for p in model.parameters())
    sizes = f"{len(train_set[0])} digits to train on, {len(test_set[0])} to test on"
    print(f"{sizes}; P = {count} parameters")

    training = train(model, *train_set)
    bar = Progress("curvature", 7 * len(training.states))
    checkpoints = [
        measure(name, state, train_set, test_set, bar) for name, state in training.states.items()
    ]
    report(checkpoints)
    print("  For softmax cross-entropy F (of labels drawn from the model) is G exactly.")

    rounds = 9
    timings = diagonal_timings(model, LOSS, *train_set, rounds=rounds, chunk=256)
    report_timings(timings, len(train_set[0]), rounds)

    draw(PICTURE, training.steps, training.losses, checkpoints, timings)
    print(f"\nThe picture: {PICTURE}.  {time.perf_counter() - begin:.0f} s in all.")


if __name__ == "__main__":
    main()
