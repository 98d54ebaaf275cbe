"""The suite ``memory``: the peak of each quantity in a process of its own, beside that of a gradient.

On the CPU it is the peak of the resident set above what model and data take, with an allocator that returns what is
freed; on CUDA the peak of the caching allocator likewise.

Kronecker factors are counted beyond what they hold themselves, beside a gradient by the same parameters.

Of a language model, whose logits are its largest tensor, the peak of a product with G stands beside that of a training
step: how far above it lies is counted in tensors of the size of the logits.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

import curvext as cx
from benchmarks.models.networks import Network, build, gpt2
from benchmarks.models.quantities import LIBRARIES, ask, missing
from benchmarks.peers import NotMeasured
from benchmarks.record import Record, Row, reason
from benchmarks.suites import kronecker
from benchmarks.suites.kernels import specifications
from curvext.kronecker.blocks import Block, SpectralBlock

#: small blocks too come from the system and go back to it, so that the resident set is what is in use
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}
MEGABYTE = 1e6


@dataclass(frozen=True)
class Effort:
    """How long a run may take."""

    networks: tuple[str, ...] = ("mlp", "cnn", "gpt")
    #: cases of each kernel
    cases: int = 4
    #: quantities; None for all of a single vector
    quantities: tuple[str, ...] | None = None
    #: of :data:`FACTORS`
    factors: int = 4
    #: layers and length of the language model
    language_model: tuple[int, int] = (12, 512)
    #: seconds for one process
    limit: float = 120.0


FULL = Effort()
QUICK = Effort(("mlp",), 1, ("gradient", "diag F_emp", "H v kept"), 1, (1, 64))
TRAINING_STEP = "training step"
#: operators whose blocks are made from scratch
FACTORS: dict[str, Callable[[cx.EmpiricalRisk], Any]] = {
    "KFAC": lambda risk: risk.kfac(kind=kronecker.KIND),
    "KFAC, reduce": lambda risk: risk.kfac(kind=kronecker.KIND, approx="reduce"),
    "Shampoo": lambda risk: risk.shampoo(kind=kronecker.KIND),
    "EKFAC": lambda risk: risk.ekfac(kind=kronecker.KIND),
}
#: products of the language model, with how many output positions are met at a time
LANGUAGE_MODEL: dict[str, int | None] = {"G v": None, "G v, 128 positions at a time": 128}


class Peak:
    """Bytes in use now, and at most since ``start``."""

    def __init__(self, device: str) -> None:
        self.device = device

    def start(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as switch:
            switch.write("5")  # the high-water mark falls to what is resident now
        self.before = self._status("VmRSS")

    def megabytes(self) -> float:
        """The peak above the start."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - self.before) / MEGABYTE
        return (self._status("VmHWM") - self.before) / MEGABYTE

    @staticmethod
    def _status(field: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def of_quantity(network: str, key: str, device: str) -> list[Row]:
    """The peak of one entry: first on two samples, so that libraries are loaded, then on all."""
    entry = next(e for library in LIBRARIES for e in library.entries() if e.key == key)

    def once(problem: Network) -> None:
        entry.make(ask(problem))()

    full = build(network, device)
    once(full.part(2))
    problem, peak = ask(full), Peak(device)
    peak.start()
    call = entry.make(problem)
    answer = call()
    found = peak.megabytes()
    del answer
    return [{"megabytes": found}]


def _matrices(block: Block) -> int:
    """Bytes of A and Γ, and of an eigenbasis where the block is one; not of rows that are kept for a basis to come."""
    parts = [block.factors.a, block.factors.g]
    if isinstance(block, SpectralBlock):
        basis = block.spectral
        parts += [basis.out, basis.inner, basis.values]
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def of_factors(network: str, name: str, device: str) -> list[Row]:
    """The peak of making an operator's blocks beyond what they hold, also in that of a gradient by their parameters."""
    full, peak = build(network, device), Peak(device)

    def blocks(problem: Network) -> list[Any]:
        model, loss, batch = problem.model, problem.loss, problem.batch
        risk = cx.EmpiricalRisk(model, loss, batch, kronecker.chosen(problem), cache=False)
        return FACTORS[name](risk)._make()

    blocks(full.part(2))
    kronecker.gradient(full.part(2))()
    gradient = kronecker.gradient(full)
    peak.start()
    answer = gradient()
    unit = peak.megabytes()
    del answer
    peak.start()
    made = blocks(full)
    found = peak.megabytes()
    held = sum(_matrices(block) for block in made) / MEGABYTE
    beyond = found - held
    return [{"megabytes": beyond, "held_megabytes": held, "gradients": beyond / unit}]


def of_language_model(quantity: str, layers: int, length: int, device: str) -> list[Row]:
    """The peak of a training step, or of a product with G from scratch."""
    full = gpt2(2, layers, length).to(device)
    v = torch.randn(full.size, device=device)

    def once(network: Network) -> torch.Tensor | None:
        if quantity == TRAINING_STEP:
            network.loss(network.model(network.batch[0]), network.batch[1]).backward()
            return None
        options = {"cache": False, "chunk_outputs": LANGUAGE_MODEL[quantity]}
        return cx.GGNOperator(network.model, network.loss, network.batch, **options) @ v

    once(full.part(1))
    full.model.zero_grad()
    peak = Peak(device)
    peak.start()
    answer = once(full)
    found = peak.megabytes()
    del answer
    M, C = full.batch[0].numel(), full.model.head.out_features
    sizes = f"GPT-2, {layers} layers, P = {full.size}, M = {M}, C = {C}"
    return [{"problem": sizes, "megabytes": found, "logits_megabytes": 4 * M * C / MEGABYTE}]


def of_kernel(kernel: str, cases: int, device: str) -> list[Row]:
    """The peaks of a kernel and of its plain form above their inputs; the result is in them."""
    found: list[Row] = []
    specification = specifications()[kernel]
    peak = Peak(device)
    torch.manual_seed(0)
    for index, case in enumerate(specification.cases(device, torch.float32)):
        if index == cases:
            break
        for form, function in (("kernel", case.kernel), ("eager", case.plain)):
            if function is None:
                continue
            if index == 0:
                function(*case.inputs)
            peak.start()
            answer = function(*case.inputs)
            megabytes = peak.megabytes()
            result = answer.numel() * answer.element_size() / MEGABYTE
            del answer
            found.append(
                {
                    "problem": case.problem,
                    "form": form,
                    "megabytes": megabytes,
                    "result_megabytes": result,
                }
            )
    return found


def _child(
    pipe: Connection, threads: int, task: Callable[..., list[Row]], arguments: tuple
) -> None:
    torch.set_num_threads(threads)
    try:
        pipe.send(task(*arguments))
    except NotMeasured as why:
        pipe.send(str(why))
    except Exception as failure:
        pipe.send(reason(failure))


def in_fresh_process(
    task: Callable[..., list[Row]], *arguments: object, limit: float
) -> list[Row] | str:
    """What ``task`` tells from a process that did nothing before, or why it told nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.suites.memory"])
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_child, args=(theirs, torch.get_num_threads(), task, arguments)
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return f"took longer than {limit:.0f} s"
        return ours.recv()
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode} (-9: out of memory)"
    finally:
        process.kill()
        process.join()


def run_language_model(
    record: Record, device: str, effort: Effort, say: Callable[[Row], None]
) -> None:
    """The rows of the language model; the peak of a training step is their unit."""
    unit: float | None = None
    for quantity in (TRAINING_STEP, *LANGUAGE_MODEL):
        where = {
            "quantity": quantity,
            "library": "torch" if quantity == TRAINING_STEP else "curvext",
            "mode": "eager",
        }
        told = in_fresh_process(
            of_language_model, quantity, *effort.language_model, device, limit=effort.limit
        )
        if isinstance(told, str):
            record.failed(told, network="gpt2", **where)
            if unit is None:
                return
            continue
        (row,) = told
        unit = row["megabytes"] if unit is None else unit
        above = (row["megabytes"] - unit) / row["logits_megabytes"]
        row = {**row, **where, "logits above": above}
        record.rows.append(row)
        say(row)


def run_factors(
    record: Record, network: str, device: str, effort: Effort, say: Callable[[Row], None]
) -> None:
    """The rows of Kronecker factors of a network."""
    for name in list(FACTORS)[: effort.factors]:
        where = {
            "network": network,
            "quantity": f"{name}, beyond its factors",
            "library": "curvext",
            "mode": "eager",
        }
        told = in_fresh_process(of_factors, network, name, device, limit=effort.limit)
        if isinstance(told, str):
            record.failed(told, **where)
            continue
        row = {**where, **told[0]}
        record.rows.append(row)
        say(row)


def run(record: Record, device: str, effort: Effort, say: Callable[[Row], None]) -> None:
    """The suite. The peak of a gradient is the unit of each network."""
    if device == "cpu" and not os.access("/proc/self/clear_refs", os.W_OK):
        raise RuntimeError("benchmarks memory: needs Linux: /proc/self/clear_refs is not writable")
    os.environ.update(ALLOCATOR)
    for network in effort.networks:
        unit: float | None = None
        for library in LIBRARIES:
            for entry in library.entries():
                wanted = effort.quantities is None or entry.quantity in effort.quantities
                if entry.mode == "compiled" or " V" in entry.quantity or not wanted:
                    continue
                where = {
                    "network": network,
                    "quantity": entry.quantity,
                    "library": entry.library,
                    "mode": entry.mode,
                }
                if absent := missing(library):
                    record.failed(absent, **where)
                    continue
                told = in_fresh_process(of_quantity, network, entry.key, device, limit=effort.limit)
                if isinstance(told, str):
                    record.failed(told, **where)
                    continue
                megabytes = told[0]["megabytes"]
                unit = megabytes if unit is None else unit
                row = {**where, "megabytes": megabytes, "gradients": megabytes / unit}
                record.rows.append(row)
                say(row)
        run_factors(record, network, device, effort, say)
    run_language_model(record, device, effort, say)
    for kernel, specification in specifications().items():
        if not hasattr(specification, "cases"):
            record.failed("its file has no cases", kernel=kernel)
            continue
        told = in_fresh_process(of_kernel, kernel, effort.cases, device, limit=effort.limit)
        if isinstance(told, str):
            record.failed(told, kernel=kernel)
            continue
        for row in told:
            row = {"kernel": kernel, **row}
            record.rows.append(row)
            say(row)
