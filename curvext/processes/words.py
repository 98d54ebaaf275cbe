"""A rank's message about its call: of fixed size, compared before anything large is sent."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from curvext.fingerprints import portable_fingerprint

#: topics on which all ranks must agree, in the order in which differences are reported
TOPICS = ("call", "vectors", "params", "parameters", "buffers", "modes", "loss", "settings")

#: bytes of UTF-8 text of a call or an error in a message
_TEXT = 384
_FORM = struct.Struct(f"<?{len(TOPICS)}qqqqdddH{_TEXT}s")

#: bytes of one rank's words
SIZE = _FORM.size


@dataclass(frozen=True)
class Saying:
    """The description of a collective call, beside the state of model and loss.

    Args:
        call: operator, method and its numbers.
        vectors: whose shapes, dtypes and contents must be those of every rank.
        by_index: whether the indices of data among those of all ranks matter.
        count: a number of this rank's that is summed over the ranks, asked for after the local work.
    """

    call: str
    vectors: Sequence[Tensor] = ()
    by_index: bool = False
    count: Callable[[], float] | None = None


@dataclass(frozen=True)
class Words:
    """The words of one rank.

    Args:
        text: the call, or the error that this rank raised.
        failed: whether it raised.
        digests: by topic, a hash of what must agree.
        samples, divisor, value: the totals of this rank's shard.
        start: the index of its first datum that it assumed.
        shards: a hash of its shards of parameters, which are its own.
        count: a further number that is summed over the ranks.
    """

    text: str
    failed: bool = False
    digests: Mapping[str, int] = field(default_factory=dict)
    samples: int = 0
    start: int = 0
    shards: int = 0
    divisor: float = 0.0
    value: float = 0.0
    count: float = 0.0

    @classmethod
    def of_error(cls, error: BaseException) -> Words:
        """The words of a rank that raised."""
        return cls(f"{type(error).__name__}: {error}", failed=True)

    @classmethod
    def of_call(cls, text: str, vectors: Sequence[Tensor] = (), **rest: Any) -> Words:
        """The words of a call: its text, its vectors, and what ``rest`` gives of the other fields."""
        shapes = ", ".join(f"{str(v.dtype)[6:]} {list(v.shape)}" for v in vectors[:1])
        if len(vectors) > 1:
            shapes = f"{len(vectors)} x {shapes}"
        text = f"{text} of {shapes}" if shapes else text
        digests = {
            "call": digest(text),
            "vectors": portable_fingerprint(vectors),
            **rest.pop("digests", {}),
        }
        return cls(text, digests=digests, **rest)

    def packed(self) -> bytes:
        """The words in :data:`SIZE` bytes; a long text is cut, but its digest is that of the whole."""
        text = self.text.encode()[:_TEXT]
        return _FORM.pack(
            self.failed,
            *(self.digests.get(topic, 0) for topic in TOPICS),
            self.samples,
            self.start,
            self.shards,
            self.divisor,
            self.value,
            self.count,
            len(text),
            text,
        )

    @classmethod
    def unpacked(cls, data: bytes) -> Words:
        """The inverse of :meth:`packed`."""
        failed, *rest = _FORM.unpack(data)
        digests = dict(zip(TOPICS, rest, strict=False))
        samples, start, shards, divisor, value, count, length, text = rest[len(TOPICS) :]
        shown = text[:length].decode(errors="ignore")
        return cls(shown, failed, digests, samples, start, shards, divisor, value, count)


def digest(what: object) -> int:
    """A hash of an object's ``repr`` that, unlike ``hash``, is the same in every process."""
    found = hashlib.blake2b(repr(what).encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


def difference(heard: Sequence[Words]) -> str | None:
    """A message about the first topic on which ranks disagree; None where they agree."""
    first = heard[0]
    for topic in TOPICS:
        for rank, words in enumerate(heard):
            if words.digests.get(topic, 0) == first.digests.get(topic, 0):
                continue
            if topic == "call":
                return (
                    "process_group: the ranks do not make the same call with the same arguments: rank 0 is in "
                    f"{first.text}, rank {rank} in {words.text}"
                )
            return f"{_OF[topic]} are not the same on rank 0 and rank {rank} of the process group, in {first.text}"
    return None


_OF = {
    "vectors": "v: the contents of the vectors",
    "params": "params: the parameters selected, or their shapes,",
    "parameters": "model: the contents of the parameters",
    "buffers": "model: the contents of the buffers",
    "modes": "model: the modes (train or eval) of the modules",
    "loss": "loss: the kind of loss, its numbers or its tensors",
    "settings": "autocast: its settings",
}
