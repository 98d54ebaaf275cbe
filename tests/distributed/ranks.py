"""Processes that wait for work: started once for a file of tests, since importing torch takes seconds."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

#: a rank that waits so long for another has been left alone
PATIENCE = 60


@dataclass(frozen=True)
class Outcome:
    """What one rank's function gave, or the name and message of the error it raised."""

    value: Any = None
    error: str | None = None
    message: str = ""
    trace: str = ""


class Ranks:
    """W processes with a gloo group among them.

    Args:
        world: W.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._folder = tempfile.TemporaryDirectory()
        meeting = "file://" + os.path.join(self._folder.name, "meeting")
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, world, meeting), daemon=True
            )
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[Outcome]:
        """``function(rank, world, *args)`` on every rank, a function at the top of a module."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))  # by value, not by shared memory
        return [self._answer(rank, function) for rank in range(self.world)]

    def _answer(self, rank: int, function: Callable[..., Any]) -> Outcome:
        assert self._pipes[rank].poll(2 * PATIENCE), (
            f"rank {rank} of {self.world} hangs in {function}"
        )
        try:
            found: Outcome = pickle.loads(self._pipes[rank].recv_bytes())
        except EOFError:
            return Outcome(None, "EOFError", "this rank has died")
        return found

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The values of every rank; an error on any fails the test."""
        found = self.outcomes(function, *args)
        for rank, outcome in enumerate(found):
            assert outcome.error is None, f"rank {rank}: {outcome.trace}"
        return [outcome.value for outcome in found]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # of one that has died
                pipe.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(pipe: Any, rank: int, world: int, meeting: str) -> None:
    """A rank: does what it is sent until nothing more comes."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    while (work := pickle.loads(pipe.recv_bytes())) is not None:
        function, args = work
        torch.manual_seed(0)
        try:
            outcome = Outcome(function(rank, world, *args))
        except Exception as error:
            outcome = Outcome(None, type(error).__name__, str(error), traceback.format_exc())
        pipe.send_bytes(pickle.dumps(outcome))
    dist.destroy_process_group()
