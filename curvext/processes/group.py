"""A group of processes: one exchange of short messages, sums, gathered rows, and errors that all ranks raise.

In a collective call each rank first works on its own shard, then all report in one exchange whether that succeeded,
then large tensors are summed. So a rank that fails still takes part in the exchange, and all ranks raise.

One file because all ranks can share an error only if every message passes through one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from curvext.processes.words import SIZE, Words, difference

#: marks an error that the other ranks know of
_TOLD = "_curvext_told"


class Group:
    """The processes whose data an answer covers. Without a process group: this process alone.

    Args:
        process_group: of ``torch.distributed``, or None.

    Raises:
        TypeError: it is something else.
        ValueError: this process is not in it.
    """

    def __init__(self, process_group: Any = None) -> None:
        self.given = process_group is not None
        self.rank, self.size = 0, 1
        self.process_group = process_group
        if self.given:
            self.rank, self.size = _place_in(process_group)
            self._device = _device_of(process_group)
        #: whether this process is the only one
        self.alone = self.size == 1

    def same_as(self, other: Group) -> bool:
        """Whether both are the same processes, or none."""
        return self.process_group is other.process_group

    # ------------------------------------------------------------------ errors

    def guarded(self) -> AbstractContextManager[None]:
        """Reports an error inside, unless the others know it, at the next exchange."""
        return nullcontext() if self.alone else self._guarded()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell(error)
            raise

    def _tell(self, error: Exception) -> None:
        if not _is_told(error):
            self._speak(Words.of_error(error))
            setattr(error, _TOLD, True)

    @contextmanager
    def call(self, text: str, vectors: Sequence[Tensor] = ()) -> Iterator[None]:
        """A call that all ranks make with the same words, exchanged before it begins."""
        if self.alone:
            yield
            return
        with self._guarded():
            self.exchange(Words.of_call(text, vectors))
            yield

    # ------------------------------------------------------------------ communication

    def exchange(self, words: Words) -> list[Words]:
        """The words of all ranks, in their order, once all agree.

        Raises:
            RuntimeError: another rank raised.
            ValueError: the ranks do not say the same.
        """
        heard = self._speak(words)
        for rank, said in enumerate(heard):
            if said.failed:
                raise _told(RuntimeError(f"rank {rank} raised {said.text}"))
        message = difference(heard)
        if message is not None:
            raise _told(ValueError(message))
        return heard

    def sum(self, t: Tensor) -> Tensor:
        """Σ over the ranks of a contiguous tensor of one shape, in place; the same bits everywhere."""
        if not self.alone:
            with _sending():
                dist.all_reduce(t, group=self.process_group)
        return t

    def sum_all(self, several: Sequence[Tensor]) -> None:
        """Σ over the ranks of each of several tensors of one dtype, in place, in one message."""
        if self.alone or not several:
            return
        flat = self.sum(torch.cat([t.reshape(-1) for t in several]))
        for t, part in zip(several, flat.split([t.numel() for t in several]), strict=True):
            t.copy_(part.view(t.shape))

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks one after the other, ``[Σ counts, ...]``.

        Args:
            mine: this rank's, ``[counts[rank], ...]``.
            counts: how many rows each rank has.
        """
        if self.alone:
            return mine
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in counts]
        with _sending():
            dist.all_gather(parts, padded, group=self.process_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def objects(self, mine: Any) -> list[Any]:
        """Small objects of all ranks, in their order."""
        if self.alone:
            return [mine]
        found: list[Any] = [None] * self.size
        with _sending():
            dist.all_gather_object(found, mine, group=self.process_group)
        return found

    def passed_on(self, parts: list[Tensor], incoming: Sequence[Tensor]) -> list[Tensor]:
        """Sends tensors to the next rank and receives those of the previous one, one at a time.

        Args:
            parts: the tensors to send, contiguous; each is dropped once sent.
            incoming: tensors on the device "meta" with the shapes and dtypes to receive.
        """
        ahead = dist.get_global_rank(self.process_group, (self.rank + 1) % self.size)
        behind = dist.get_global_rank(self.process_group, (self.rank - 1) % self.size)
        taken: list[Tensor] = []
        parts[:] = [part.to(self._device) for part in parts]
        with _sending():
            for i in range(max(len(parts), len(incoming))):
                moves = []
                if i < len(parts) and parts[i].numel():
                    moves.append(
                        dist.P2POp(dist.isend, _bytes(parts[i]), ahead, self.process_group)
                    )
                if i < len(incoming):
                    taken.append(torch.empty_like(incoming[i], device=self._device))
                    if taken[i].numel():
                        moves.append(
                            dist.P2POp(dist.irecv, _bytes(taken[i]), behind, self.process_group)
                        )
                for work in dist.batch_isend_irecv(moves) if moves else ():
                    work.wait()
                if i < len(parts):
                    parts[i] = parts[i].new_empty(0)
        parts.clear()
        return taken

    def _speak(self, words: Words) -> list[Words]:
        mine = torch.frombuffer(bytearray(words.packed()), dtype=torch.uint8).to(self._device)
        parts = [
            torch.empty(SIZE, dtype=torch.uint8, device=self._device) for _ in range(self.size)
        ]
        with _sending():
            dist.all_gather(parts, mine, group=self.process_group)
        return [Words.unpacked(bytes(part.tolist())) for part in parts]

    # ------------------------------------------------------------------ words

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}" if self.given else "this process alone"

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self  # processes cannot be copied

    def __reduce__(self) -> tuple[Any, ...]:
        if self.given:
            raise TypeError(
                "a risk or operator with process_group= cannot be pickled: the group is these processes; make a new "
                "one where it is needed"
            )
        return Group, ()


class _Member(Protocol):
    group: Group


Parameters = ParamSpec("Parameters")
Owner = TypeVar("Owner", bound=_Member)
Answer = TypeVar("Answer")


def collective(
    method: Callable[Concatenate[Owner, Parameters], Answer],
) -> Callable[Concatenate[Owner, Parameters], Answer]:
    """A method that all ranks of its owner's group call together: an error in it on one is an error on all."""

    @wraps(method)
    def called(owner: Owner, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        if owner.group.alone:
            return method(owner, *args, **kwargs)
        with owner.group.guarded():
            return method(owner, *args, **kwargs)

    return called


#: this process, without a group
ALONE = Group()


def _place_in(process_group: Any) -> tuple[int, int]:
    """Rank and number of ranks."""
    if not dist.is_available():
        raise ValueError("process_group: this build of PyTorch has no torch.distributed")
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group: this process is not in the group; call this on the ranks that are"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group: expected None or a group of torch.distributed (dist.group.WORLD, dist.new_group(...), "
            f"mesh.get_group()), got {type(process_group).__name__}"
        )
    rank = dist.get_rank(process_group)
    if rank < 0:
        raise ValueError(
            f"process_group: rank {dist.get_rank()} is not in the group; call this on the ranks that are"
        )
    return rank, dist.get_world_size(process_group)


def _device_of(process_group: Any) -> torch.device:
    """The device from which the backend sends words."""
    if dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _bytes(t: Tensor) -> Tensor:
    """The same memory as bytes: not every backend sends every dtype."""
    return t.view(-1).view(torch.uint8)


@contextmanager
def _sending() -> Iterator[None]:
    """Whether an error is one of the communication itself, which cannot be sent to the others."""
    try:
        yield
    except Exception as error:
        _told(error)
        raise


def _told(error: Exception) -> Exception:
    setattr(error, _TOLD, True)
    return error


def _is_told(error: BaseException | None) -> bool:
    """Whether the others know an error, or the one that it was raised from."""
    while error is not None:
        if getattr(error, _TOLD, False):
            return True
        error = error.__cause__
    return False
