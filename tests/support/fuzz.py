"""Random networks on random batches: every answer of the library is right, or refused with a reason.

    python tests/support/fuzz.py 5000            # so many networks from seed 0 on
    python tests/support/fuzz.py 1 --seed 4711   # that one again

What fails is shrunk: steps are dropped, batches and the loss made plain while the fault stays.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fuzzed_steps import STEPS, D, T
from oracles import Oracle, with_reduction
from problems import LOSSES
from torch import Tensor, nn

import curvext as cx

#: ways from [N, T, D] to an output; classes are dimension 1, and there are as many as D
HEADS = ("mean", "flat", "sequence", "zero_mean")
#: relative agreement asked for
TOLERANCE = 1e-9
#: outputs beyond it are not compared
LARGEST = 8.0


@dataclass(frozen=True)
class Spec:
    """One network with its data, made from a seed; steps carry the number that their parameters are drawn by."""

    seed: int
    steps: tuple[tuple[int, str], ...]
    head: str
    loss: str
    reduction: str
    sizes: tuple[int, ...]
    params: str

    @classmethod
    def drawn(cls, seed: int) -> Spec:
        """The network of a seed."""
        generator = torch.Generator().manual_seed(seed)

        def one(choices: list[str]) -> str:
            return choices[int(torch.randint(len(choices), (), generator=generator))]

        count = 1 + int(torch.randint(4, (), generator=generator))
        steps = tuple((i, one(list(STEPS))) for i in range(count))
        sizes = [(3,), (4,), (2, 3), (3, 3), (1, 4), (4, 2), (3, 1, 2)]
        return cls(
            seed,
            steps,
            one(list(HEADS)),
            one(list(LOSSES)),
            one(["mean", "mean", "sum"]),
            sizes[int(torch.randint(len(sizes), (), generator=generator))],
            one(["*", "*", "*", "some"]),
        )

    def smaller(self) -> Iterator[Spec]:
        """The same with something less."""
        for i in range(len(self.steps)):
            yield replace(self, steps=self.steps[:i] + self.steps[i + 1 :])
        if len(self.sizes) > 1:
            yield from (replace(self, sizes=(size,)) for size in self.sizes)
            yield replace(self, sizes=self.sizes[:-1])
        for plain in ({"head": "mean"}, {"loss": "mse"}, {"reduction": "mean"}, {"params": "*"}):
            if any(getattr(self, key) != value for key, value in plain.items()):
                yield replace(self, **plain)


class Network(nn.Module):
    """The steps one after the other, and a head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_seeded(spec.seed, i, STEPS[name]) for i, name in spec.steps)
        width = T * D if spec.head == "flat" else D
        self.head = _seeded(spec.seed, 99, lambda: nn.Linear(width, 3))
        if spec.head == "zero_mean":
            nn.init.zeros_(self.head.weight)
        self._kind = spec.head

    def forward(self, x: Tensor, **side: Tensor) -> Tensor:
        h = x
        for step in self.steps:
            h = step(h, side)
        if self._kind == "flat":
            return self.head(h.flatten(1))
        return self.head(h).transpose(1, 2) if self._kind == "sequence" else self.head(h.mean(1))


def _seeded(seed: int, number: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1000 * seed + number)
        return build().double()


def batch_of(spec: Spec, number: int, size: int) -> dict[str, Tensor]:
    """Inputs of a batch, and what indexing goes by."""
    g = torch.Generator().manual_seed(7919 * spec.seed + number)
    return {
        "x": torch.randn(size, T, D, generator=g, dtype=torch.float64),
        "order": torch.randperm(size, generator=g),
        "mask": torch.rand(size, generator=g) < 0.6,
        "keep": torch.rand(size, T, generator=g) < 0.6,
        "pick": torch.randint(T, (size, T), generator=g),
        "segment": torch.randint(4, (size,), generator=g),
        "segment_of_few": torch.randint(size, (size,), generator=g),
        "tokens": torch.randint(5, (size, T), generator=g),
    }


# ---------------------------------------------------------------------- the truth


class Truth:
    """All quantities of some batches by the oracle of the tests, which is asked for sums, batch by batch."""

    def __init__(
        self, model: nn.Module, loss: object, batches: list[dict[str, Tensor]], names: list[str]
    ) -> None:
        summed, mean = with_reduction(loss, "sum"), with_reduction(loss, "mean")
        self.oracles = []
        divisor = 0.0
        for batch in batches:
            x = {k: t for k, t in batch.items() if k != "labels"}
            oracle = Oracle(model, summed, x, batch["labels"], names)
            self.oracles.append(oracle)
            anywhere = torch.linspace(0.1, 0.9, oracle.output.numel(), dtype=torch.float64).view_as(
                oracle.output
            )
            share = summed(anywhere, oracle.y) / mean(anywhere, oracle.y)
            divisor += float(share.nan_to_num())
        is_sum = loss.reduction == "sum"
        self.scale = 1.0 if is_sum else 1 / divisor
        self.samples = sum(len(o.output) for o in self.oracles)
        gradients = torch.cat([o.sample_gradients() for o in self.oracles])
        self.g = gradients * (1.0 if is_sum else self.samples * self.scale)
        self.share = 1.0 if is_sum else 1 / self.samples

    def quantities(self, V: Tensor) -> dict[str, Tensor]:
        """By name; without those that need a derivative that PyTorch lacks."""
        G = sum(o.ggn() for o in self.oracles) * self.scale
        E = self.g.T @ self.g * self.share
        found = {
            "value": sum(o.value() for o in self.oracles) * self.scale,
            "gradient": sum(o.gradient() for o in self.oracles) * self.scale,
            "G": G @ V,
            "F_emp": E,
            "F_emp v": E @ V,
            "diag F_emp": E.diagonal(),
            "tr F_emp": E.trace(),
            "norms": self.g.norm(dim=1),
            "gram": self.g @ self.g.T,
            "diag G": G.diagonal(),
        }
        try:
            found["H"] = sum(o.hvp(V) for o in self.oracles) * self.scale
            found["R"] = found["H"] - found["G"]
        except RuntimeError:
            found.pop("H", None)
        return found


#: asked for at first alone; how samples lie shows in the others too
ONCE = {"tr F_emp", "F_emp", "gram", "value", "R", "diag G"}


def answers(risk: cx.EmpiricalRisk, V: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The same by the library."""
    E = risk.empirical_fisher()
    return {
        "norms": E.gradient_norms,
        "diag F_emp": E.diagonal,
        "tr F_emp": E.trace,
        "F_emp v": lambda: E @ V,
        "F_emp": E.to_dense,
        "gram": E.gram,
        "value": lambda: torch.tensor(risk.value(), dtype=torch.float64),
        "gradient": risk.gradient,
        "G": lambda: risk.ggn() @ V,
        "H": lambda: risk.hessian() @ V,
        "R": lambda: risk.model_curvature() @ V,
        "diag G": lambda: risk.ggn().diagonal(),
    }


# ---------------------------------------------------------------------- one network


class Outcome:
    """What became of one network."""

    def __init__(self) -> None:
        #: (when, quantity, what is wrong)
        self.faults: list[tuple[str, str, str]] = []
        self.refusals: Counter[str] = Counter()
        self.right = 0


def tried(spec: Spec) -> Outcome:
    """One model: a risk of several batches, the same at other parameters, and another risk of other values."""
    outcome = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Network(spec).eval()
        names = [n for n, _ in model.named_parameters()]
        if spec.params == "some":
            names = names[::2]
        loss = LOSSES[spec.loss].build(spec.reduction)
        if isinstance(loss, nn.Module):
            loss = loss.double()

        def batches(first: int) -> list[dict[str, Tensor]]:
            made = [batch_of(spec, first + i, size) for i, size in enumerate(spec.sizes)]
            for i, batch in enumerate(made):
                with torch.random.fork_rng():
                    torch.manual_seed(spec.seed + first + i)
                    batch["labels"] = LOSSES[spec.loss].target(model(**batch).detach())
            return made

        try:
            data, other = batches(0), batches(10)
        except (RuntimeError, IndexError):
            return outcome  # the network itself does not run
        risk = cx.EmpiricalRisk(model, loss, data, names)
        _compare(outcome, "at first", risk, lambda: Truth(model, loss, data, names))
        with torch.no_grad():
            g = torch.Generator().manual_seed(spec.seed)
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        _compare(outcome, "after a step", risk, lambda: Truth(model, loss, data, names))
        risk = cx.EmpiricalRisk(model, loss, other, names)
        _compare(outcome, "in another risk", risk, lambda: Truth(model, loss, other, names))
    return outcome


def _compare(
    outcome: Outcome, when: str, risk: cx.EmpiricalRisk, truth: Callable[[], Truth]
) -> None:
    V = torch.randn(
        risk.space.size, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    try:
        right = truth()
        if max(float(o.output.detach().abs().max()) for o in right.oracles) > LARGEST:
            return  # where a softmax is saturated rounding is all that there is to compare
        expected = right.quantities(V)
    except (RuntimeError, ZeroDivisionError):  # every label may be ignored
        return  # PyTorch itself has no answer
    if not all(bool(t.isfinite().all()) for t in expected.values()):
        return  # nor a number
    size = max(float(expected[name].norm()) for name in ("H", "G", "R") if name in expected)
    for name, answer in answers(risk, V).items():
        if name in ONCE and when != "at first":
            continue
        try:
            got = answer()
        except Exception as error:
            if is_refusal(error):
                outcome.refusals[f"{name}: {str(error)[:90]}"] += 1
            else:
                outcome.faults.append((when, name, f"{type(error).__name__}: {str(error)[:300]}"))
            continue
        if name not in expected:
            continue
        scale = max(float(expected[name].norm()), size if name in ("H", "R") else 0.0, 1e-6)
        if name == "gradient":
            scale = max(scale, float(expected["norms"].max()))
        off = float((got - expected[name]).norm()) / scale
        if off <= TOLERANCE:
            outcome.right += 1
        else:
            outcome.faults.append((when, name, f"relative error {off:.1e}"))


def is_refusal(error: Exception) -> bool:
    """Whether the library raised it on purpose: by a ``raise`` of its own, as one of the errors that it documents."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(cx.__file__).parent in Path(last.filename).parents
    return (
        own
        and isinstance(error, (ValueError, RuntimeError, TypeError))
        and (last.line or "").startswith("raise")
    )


def shrunk(spec: Spec) -> Spec:
    """A smaller network with a fault in one of the same quantities."""
    wrong = {name for _, name, _ in tried(spec).faults}
    for smaller in spec.smaller():
        try:
            faults = tried(smaller).faults
        except Exception:
            continue
        if wrong & {name for _, name, _ in faults}:
            return shrunk(smaller)
    return spec


def report(spec: Spec) -> str:
    """A fault in words, as small as it can be had."""
    small = shrunk(spec)
    lines = [
        f"seed {spec.seed}: {' → '.join(name for _, name in spec.steps)}; as small as it gets:",
        f"  {small}",
    ]
    lines += [f"  {name} {when}: {what}" for when, name, what in tried(small).faults]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    refusals: Counter[str] = Counter()
    right = wrong = 0
    for seed in range(options.seed, options.seed + options.count):
        outcome = tried(Spec.drawn(seed))
        refusals += outcome.refusals
        right += outcome.right
        if outcome.faults:
            wrong += 1
            print(report(Spec.drawn(seed)), flush=True)
    print(
        f"{options.count} networks: {right} answers right, {refusals.total()} refused, {wrong} networks with a fault"
    )
    for words, count in refusals.most_common(20):
        print(f"  {count:5d}  {words}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
