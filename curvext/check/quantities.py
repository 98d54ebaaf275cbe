"""What is compared: for each quantity the library's answer and that of plain PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvext.check.plain import Plain
from curvext.check.samples import SampleSums, norms_by_parameter
from curvext.problem.problem import NOWHERE

if TYPE_CHECKING:
    from curvext.risk import EmpiricalRisk

#: the exact diagonal of G is asked for up to so many outputs of a sample, each a backward pass
_OUTPUTS = 64
#: beyond this many samples, one backward pass for each would take too long
_ONE_BY_ONE = 512

Answers = dict[str, Callable[[], Tensor]]
#: names and lengths, along the first dimension, of what counts by itself
Parts = list[tuple[str, int]]


@dataclass(frozen=True)
class Quantity:
    """One row of a check before it is computed.

    Args:
        name, path: as in :class:`CheckRow`.
        ours, plain: both answers.
        parts: of both; names are "" where there is nothing to name.
        left: why it is not checked, "" where it is.
    """

    name: str
    path: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    parts: Parts
    left: str


class Quantities:
    """All quantities of a risk on a few random vectors, samples and coordinates.

    Args:
        risk: the risk, which has a value.
        plain: the same by plain PyTorch.
        samples: how many samples, and coordinates of diagonals, are looked at.
        vectors: how many vectors.
        seed: of all that is drawn.
    """

    def __init__(
        self, risk: EmpiricalRisk, plain: Plain, samples: int, vectors: int, seed: int
    ) -> None:
        self._risk, self._plain, self._space = risk, plain, risk.space
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        V = self._random(self._space.size, vectors)
        self._V = V.to(self._space.device, self._space.dtype)
        self._value = plain.value()
        self._gradient = plain.gradient()
        self._numbers = sorted(self._drawn(plain.samples, samples))
        self._every = len(self._numbers) == plain.samples
        self._coordinates = self._drawn_coordinates(samples)

    def all(self) -> list[Quantity]:
        """In the order of the table."""
        ours, plain = self._ours(), self._by_plain_pytorch()
        graph, (samples, too_slow) = self._risk.products_by(), self._sample_paths()
        rows = []
        for name, answer in ours.items():
            of_samples = name in ("F_emp v", "‖g_n‖", "tr F_emp") or name.startswith("diag")
            path = "forward pass" if name == "value" else samples if of_samples else graph
            left = too_slow if of_samples else ""
            if name == "diag G" and self._plain.outputs > _OUTPUTS:
                left = f"it takes one backward pass for each of {self._plain.outputs} outputs of a sample"
            rows.append(Quantity(name, path, answer, plain[name], self._parts(name), left))
        return rows

    def terms(self, answers: dict[str, Tensor]) -> dict[str, float]:
        """The size of each quantity's terms: where they cancel, rounding is judged against it.

        Args:
            answers: what plain PyTorch answered.
        """
        sizes = dict.fromkeys(answers, 0.0)
        sizes |= {name: float(answer.norm()) for name, answer in answers.items()}
        if "‖g_n‖" in answers:  # samples cancel in their mean
            typical = float(answers["‖g_n‖"].square().mean().sqrt())
            sizes["gradient"] = max(sizes.get("gradient", 0.0), typical)
        sizes["value"] = max(sizes["value"], self._plain.terms)
        for name in sizes:
            if name in ("G v", "H v", "F v", "diag G"):
                sizes[name] *= self._plain.curvature_cancels
            elif name not in ("F_mc v", "diag F_mc"):
                sizes[name] *= self._plain.residuals_cancel
        together = max((sizes.get(name, 0.0) for name in ("G v", "H v", "R v")), default=0.0)
        return sizes | {"H v": together, "R v": together}  # H = G + R

    def worst_of_norms(self) -> str:
        """The parameter whose part of the checked samples' norms has the largest error."""
        plain = self._sample_sums.by_parameter
        off = (norms_by_parameter(self._risk)[self._numbers].to(plain) - plain).abs().sum(0)
        return self._space.names[int(off.argmax())]

    # ------------------------------------------------------------------ both sides

    def _ours(self) -> Answers:
        risk, V = self._risk, self._V
        E, at = risk.empirical_fisher(), self._coordinates
        return {
            "value": lambda: torch.tensor([risk.value()], dtype=torch.float64, device="cpu"),
            "gradient": risk.gradient,
            "H v": lambda: risk.hessian() @ V,
            "G v": lambda: risk.ggn() @ V,
            "R v": lambda: risk.model_curvature() @ V,
            "F v": lambda: risk.fisher() @ V,
            "F_mc v": lambda: risk.mc_fisher() @ V,
            "F_emp v": lambda: E @ V,
            "‖g_n‖": lambda: E.gradient_norms()[self._numbers],
            "tr F_emp": lambda: E.trace().view(1),
            "diag F_emp": lambda: E.diagonal() if self._every else E.diagonal()[at],
            "diag G": lambda: risk.ggn().diagonal()[at],
            "diag F_mc": lambda: risk.mc_fisher().diagonal()[at],
        }

    def _by_plain_pytorch(self) -> Answers:
        plain, V = self._plain, self._V
        return {
            "value": lambda: self._value.view(1),
            "gradient": lambda: self._gradient,
            "H v": lambda: plain.hessian(V),
            "G v": lambda: self._ggn,
            "R v": lambda: plain.model_curvature(V),
            "F v": lambda: self._ggn if self._risk.loss.fisher_is_ggn else plain.log_fisher(V),
            "F_mc v": lambda: plain.mc_fisher(V, self._risk.loss),
            "F_emp v": self._empirical_fisher,
            "‖g_n‖": lambda: self._sample_sums.norms(),
            "tr F_emp": self._trace,
            "diag F_emp": self._empirical_diagonal,
            "diag G": lambda: self._diagonals[:, 1],
            "diag F_mc": lambda: self._diagonals[:, 2],
        }

    @cached_property
    def _ggn(self) -> Tensor:
        return self._plain.ggn(self._V)

    @cached_property
    def _diagonals(self) -> Tensor:
        loss = self._risk.loss
        return self._plain.diagonals(
            self._coordinates, loss if loss.no_likelihood is None else None
        )

    @cached_property
    def _sample_sums(self) -> SampleSums:
        return SampleSums(self._plain, self._space, self._numbers, self._V)

    def _trace(self) -> Tensor:
        """Σ ‖g_n‖²; where only some samples are checked, from the library's norms, which have a row of their own."""
        ours = self._risk.empirical_fisher().gradient_norms
        norms = self._sample_sums.norms() if self._every else ours().double()
        return norms.square().sum().view(1) * self._plain.share_of_sample()

    def _empirical_fisher(self) -> Tensor:
        if not self._every:
            return self._plain.empirical_fisher(self._V)
        return self._sample_sums.products * self._plain.share_of_sample()

    def _empirical_diagonal(self) -> Tensor:
        if not self._every:
            return self._diagonals[:, 0]
        return self._sample_sums.squares * self._plain.share_of_sample()

    # ------------------------------------------------------------------ parts and paths

    def _parts(self, name: str) -> Parts:
        blocks = list(zip(self._space.names, self._space.sizes, strict=True))
        if name in ("value", "tr F_emp"):
            return [("", 1)]
        if name == "‖g_n‖":
            return [("", 1)] * len(self._numbers)
        if name.startswith("diag") and not (name == "diag F_emp" and self._every):
            return [(self._owner(i), 1) for i in self._coordinates]
        return blocks

    def _owner(self, coordinate: int) -> str:
        """The parameter of an entry of the flat vector."""
        for name, size in zip(self._space.names, self._space.sizes, strict=True):
            if coordinate < size:
                return name
            coordinate -= size
        raise IndexError(coordinate)

    def _sample_paths(self) -> tuple[str, str]:
        """How many parameters take which path; where a path is too slow to check, also the reason."""
        try:
            by_name = self._risk.paths()
        except (ValueError, TypeError, RuntimeError):  # each quantity reports it in its own row
            return "", ""
        of_ranks = self._risk.group.objects(by_name)
        by_name = {
            name: sorted({path for paths in of_ranks for path in paths[name]} - {NOWHERE})
            for name in by_name
        }
        count = Counter(path for paths in by_name.values() for path in paths)
        words = "; ".join(f"{path}: {n}" for path, n in sorted(count.items()))
        slow = [name for name, paths in by_name.items() if "general" in paths]
        if not slow or self._plain.samples <= _ONE_BY_ONE:
            return words, ""
        return words, (
            f"{slow[0]!r} takes one backward pass for each of {self._plain.samples} samples; check a risk of at most "
            f"{_ONE_BY_ONE}"
        )

    # ------------------------------------------------------------------ what is drawn

    def _drawn_coordinates(self, count: int) -> list[int]:
        """Entries from each parameter in turn, with nonzero gradients where there are any."""
        order = self._drawn(len(self._space.names), len(self._space.names))
        starts = [0]
        for size in self._space.sizes:
            starts.append(starts[-1] + size)
        found = []
        for turn in range(min(count, self._space.size)):
            number = order[turn % len(order)]
            part = self._gradient[starts[number] : starts[number + 1], 0]
            alive = part.nonzero().view(-1).cpu()
            choice = alive if len(alive) else torch.arange(len(part), device="cpu")
            place = int(choice[self._drawn(len(choice), 1)[0]])
            found.append(starts[number] + place)
        return sorted(set(found))

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")

    def _drawn(self, of: int, count: int) -> list[int]:
        """``count`` of the numbers below ``of``, all where they are fewer."""
        order = torch.randperm(of, generator=self._generator, device="cpu")
        return [int(i) for i in order[:count]]
