"""What is measured of a network, by every library that has it, and the truth in float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

import curvext as cx
from benchmarks.machine import installed
from benchmarks.models.networks import Network
from benchmarks.peers import (
    Ask,
    Entry,
    backpack,
    curvext,
    curvlinops,
    hessian_eigenthings,
    opacus,
    pytorch,
)

LIBRARIES: list[ModuleType] = [
    pytorch,
    curvext,
    curvlinops,
    hessian_eigenthings,
    backpack,
    opacus,
]
#: columns of a block of vectors
COLUMNS = 8
#: entries at which an exact diagonal of G is compared with e_iᵀ G e_i
COORDINATES = 8


def ask(network: Network) -> Ask:
    """The network with its vectors, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    V = torch.randn(network.size, COLUMNS, generator=generator).to(network.batch[0].device)
    return Ask(network, V[:, 0].contiguous(), V)


def library_of(entry: Entry) -> ModuleType:
    """The module that offers an entry."""
    return next(m for m in LIBRARIES if any(e.key == entry.key for e in m.entries()))


def missing(library: ModuleType) -> str | None:
    """Why a library cannot be measured at all, or None."""
    if library.PACKAGE is None or installed(library.PACKAGE):
        return None
    return f"not installed: pip install {library.PACKAGE}"


class Truth:
    """Answers in float64 by plain PyTorch (another definition than curvext's), made when first asked for."""

    def __init__(self, problem: Ask) -> None:
        self.network = problem.network.to(dtype=torch.float64)
        self.v, self.V = problem.v.double(), problem.V.double()
        self.kept: dict[str, Tensor | None] = {}

    def of(self, quantity: str) -> Tensor | None:
        """None where there is none: a diagonal estimated from drawn labels."""
        quantity = quantity.removesuffix(" kept")
        if quantity not in self.kept:
            self.kept[quantity] = self._make(quantity)
        return self.kept[quantity]

    def _make(self, quantity: str) -> Tensor | None:
        plain = self.network.classifier()
        products: dict[str, Callable[[Network, Tensor], Tensor]] = {
            "H": pytorch.hessian_product,
            "G": pytorch.ggn_product,
            "F_emp": pytorch.fisher_product,
        }
        if quantity == "gradient":
            return pytorch.gradient(self.network)
        if quantity == "diag F_emp":
            return pytorch.per_sample_squares(plain, chunk=4)
        if quantity == "norms":
            return pytorch.per_sample_norms(plain)
        if quantity == "F_emp v per token":
            return pytorch.token_fisher_product(plain, self.v)
        if quantity == "diag G":
            picked = self.coordinates()
            unit = torch.zeros_like(self.v)
            found = []
            for i in picked:
                unit.zero_()[i] = 1
                found.append(pytorch.ggn_product(plain, unit)[i])
            return torch.stack(found)
        letter, _, vectors = quantity.partition(" ")
        if letter in products and vectors == "v":
            return products[letter](plain, self.v)
        if letter in products and vectors == "V":
            # one column stands for all: it is checked that each library gives it where it should
            return products[letter](plain, self.V[:, -1])
        if quantity == "diag F_mc":  # the labels are drawn from the seed alone, in float64 too
            n = self.network
            return curvext.flat(cx.fisher_diagonal(n.model, n.loss, n.batch, kind="mc"))
        return None

    def coordinates(self) -> Tensor:
        """Entries of the parameters, spread evenly over all of them."""
        steps = torch.arange(COORDINATES, device=self.v.device)
        return (self.network.size - 1) * steps // (COORDINATES - 1)

    def error(self, quantity: str, answer: Tensor) -> float | None:
        """‖answer − truth‖ / ‖truth‖, None where there is no truth."""
        truth = self.of(quantity)
        if truth is None:
            return None
        answer = answer.detach().double()
        if quantity == "diag G":
            answer = answer[self.coordinates()]
        elif answer.ndim == 2:
            answer = answer[:, -1]
        if answer.shape != truth.shape:
            raise ValueError(f"an answer of shape {list(answer.shape)}, not {list(truth.shape)}")
        return float((answer - truth).norm() / truth.norm())


def lanczos(multiply: Callable[[Tensor], Tensor], v: Tensor, steps: int) -> Tensor:
    """Ritz values of a Lanczos run with full reorthogonalisation, the same code for all libraries."""
    basis = torch.empty(steps, len(v), dtype=v.dtype, device=v.device)
    basis[0] = v / v.norm()
    diagonal, off = v.new_zeros(steps), v.new_zeros(steps - 1)
    for k in range(steps):
        w = multiply(basis[k])
        diagonal[k] = w @ basis[k]
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        if k + 1 < steps:
            off[k] = w.norm()
            basis[k + 1] = w / off[k]
    return torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
