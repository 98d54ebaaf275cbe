"""What a product on replicas costs beside the same pass on this process's half of the data, and eigsh's memory.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.distributed [networks]

All processes do the local pass at the same time, then the product together, in interleaved rounds that begin at a
barrier; a round lasts until the last has finished. Prints medians, their ratio, and the collectives of one product; and
how much the memory of a process grows at most while ``eigsh`` runs on sharded vectors, and on whole ones.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import curvext as cx
from benchmarks.models.networks import build
from benchmarks.suites.memory import MEGABYTE, Peak

ROUNDS, WARM_UP = 15, 2
NETWORKS = ("lenet", "cnn", "gpt-small")
#: vectors of "@ V"
COLUMNS = 4
#: P of the matrix by which memory is measured
SIZE = 4_000_000


class Collectives(TorchDispatchMode):
    """Counts the operations of torch.distributed that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if name.startswith(("c10d.", "_c10d_functional.")):
            self.found[name.split(".")[1]] += 1
        return function(*args, **(kwargs or {}))


def seconds(call: Callable[[], object]) -> float:
    """Until the last process has finished a call that all begin together."""
    dist.barrier()
    begin = time.perf_counter()
    call()
    took = torch.tensor(time.perf_counter() - begin)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def products(name: str) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """For each product: the local pass, and the product of all processes."""
    network = build(name, "cpu")
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = tuple(t[rank::world] for t in network.batch)
    alone = cx.EmpiricalRisk(network.model, network.loss, batch)
    together = cx.EmpiricalRisk(network.model, network.loss, batch, process_group=dist.group.WORLD)
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(together.space.size, COLUMNS, generator=generator)
    found = {}
    for letter, method in (("G", "ggn"), ("H", "hessian"), ("F_emp", "empirical_fisher")):
        here, everywhere = getattr(alone, method)(), getattr(together, method)()
        found[f"{letter} @ v"] = (
            lambda A=here: A @ V[:, 0],
            lambda A=everywhere: A @ V[:, 0],
        )
    here, everywhere = alone.ggn(), together.ggn()
    found[f"G @ V, {COLUMNS} columns"] = (lambda: here @ V, lambda: everywhere @ V)
    return found


class Diagonal:
    """A diagonal matrix on sharded vectors.

    Args:
        size: P.
        rank, world: whose entries; every process has all of them where ``world`` is 1.
    """

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, size: int, rank: int, world: int) -> None:
        self.shape = (size, size)
        self._first, self._step = (rank, world) if world > 1 else (0, 1)
        if world > 1:
            self.entries = torch.arange(rank, size, world)

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """Entry i is multiplied by 1 / (1 + i)."""
        return v / torch.arange(1 + self._first, 1 + self.shape[0], self._step)

    def inner(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """aᵀb of local columns, summed over the processes."""
        total = a.T @ b
        dist.all_reduce(total)
        return total


def growth(size: int, rank: int, world: int) -> float:
    """Megabytes by which the most memory of this process while ``eigsh`` runs exceeds what it has before."""
    A, peak = Diagonal(size, rank, world), Peak("cpu")
    peak.start()
    cx.eigsh(A, 3, "LA", ncv=20, maxiter=20, verify=False)
    return peak.megabytes()


def main(names: list[str]) -> None:
    """Measures and prints, on rank 0."""
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    if first:
        print(
            f"{dist.get_world_size()} processes, {torch.get_num_threads()} threads each, {ROUNDS} rounds"
        )
        print(
            f"{'':10} {'':18} {'local pass':>11} {'product':>11} {'ratio':>6}  collectives of one product"
        )
    for name in names or NETWORKS:
        for what, (local, product) in products(name).items():
            times: list[list[float]] = [[], []]
            for turn in range(WARM_UP + ROUNDS):
                for which, call in enumerate((local, product)):
                    took = seconds(call)
                    if turn >= WARM_UP:
                        times[which].append(took)
            with torch.no_grad(), Collectives() as counted:
                product()
            a, b = (statistics.median(t) for t in times)
            sent = ", ".join(f"{n} {k}" for k, n in sorted(counted.found.items()))
            if first:
                print(
                    f"{name:10} {what:18} {1e3 * a:8.2f} ms {1e3 * b:8.2f} ms {b / a:6.2f}  {sent}"
                )
    rank, world = dist.get_rank(), dist.get_world_size()
    sharded, whole = growth(SIZE, rank, world), growth(SIZE, rank, 1)
    vector = SIZE * 8 / MEGABYTE
    if first:
        print(
            f"eigsh, P = {SIZE}, 23 vectors of {vector:.0f} MB: {sharded:.0f} MB a process on sharded vectors, "
            f"{whole:.0f} MB on whole ones"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
