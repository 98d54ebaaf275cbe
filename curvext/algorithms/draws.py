"""Random numbers that are a function of (seed, number of the vector, index of the entry) alone.

So a probe is the same vector however its entries are spread over processes, and whatever was drawn before it.

Source: Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators, for the mixing function;
Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3, for drawing by counter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvext.algorithms.vectors import Vectors

_WORD = 64
_MASK = (1 << _WORD) - 1
_GOLDEN = 0x9E3779B97F4A7C15
#: shift and multiplier of each step of the mixing function; the last step has no multiplier
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
#: entries at a time, so that the passes over them stay in the cache
_CHUNK = 1 << 15
#: integers of as many bytes
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: kinds of draws, which share no numbers
_SIGNS, _NORMALS = 1, 2


def signs(vectors: Vectors, seed: int, numbers: range) -> Tensor:
    """Independent signs ±1 of the vectors ``numbers``, as rows ``[len(numbers), P_r]``, int8 on the CPU."""
    found = torch.empty(len(numbers), vectors.local, dtype=torch.int8, device="cpu")
    for start, stop, entries in _chunks(vectors):
        word = -1
        for row, number in zip(found, numbers, strict=True):
            if number // _WORD != word:  # one word has a bit for each of 64 vectors
                word = number // _WORD
                bits = _words(entries, seed, _SIGNS, word)
            row[start:stop] = torch.bitwise_and(bits >> number % _WORD, 1).mul_(2).sub_(1)
    return found


def normals(vectors: Vectors, seed: int, numbers: range) -> Tensor:
    """Independent standard normals of the vectors ``numbers``, rows ``[len(numbers), P_r]``, float64 on the CPU."""
    found = torch.empty(len(numbers), vectors.local, dtype=torch.float64, device="cpu")
    for start, stop, entries in _chunks(vectors):
        for row, number in zip(found, numbers, strict=True):
            # 52 bits and a half: never 0 or ±1, and symmetric
            uniform = (_words(entries, seed, _NORMALS, number) >> 12).double().add_(0.5)
            row[start:stop] = torch.erfinv(uniform.mul_(2.0**-51)).mul_(2**0.5)
    return found


def fingerprint(vectors: Vectors, t: Tensor) -> int:
    """A hash of the values of ``[P_r]`` or ``[P_r, K]`` and of their places, the same for every sharding."""
    columns = t.detach().unsqueeze(1) if t.ndim == 1 else t.detach().flatten(1)
    total = torch.zeros((), dtype=torch.int64, device="cpu")
    for start, stop, entries in _chunks(vectors):
        chunk = columns[start:stop].cpu().contiguous().view(_INTEGERS[t.dtype.itemsize])
        words = chunk.to(torch.int64, copy=True)  # of the caller, while the mixing is in place
        places = (entries * columns.shape[1]).unsqueeze(1) + torch.arange(
            words.shape[1], device="cpu"
        )
        total += _mix(_mix(words) + places * _signed(_GOLDEN)).sum()
    return vectors.add(int(total) & _MASK)


def _chunks(vectors: Vectors) -> Iterator[tuple[int, int, Tensor]]:
    for start in range(0, vectors.local, _CHUNK):
        stop = min(start + _CHUNK, vectors.local)
        yield start, stop, vectors.entries(start, stop)


def _words(entries: Tensor, seed: int, kind: int, number: int) -> Tensor:
    """64 random bits for each entry, as int64."""
    key = _mixed(_mixed(_mixed(seed & _MASK) + kind) + number)
    words = entries * _signed(_GOLDEN) + _signed(key)
    # mixed twice, with a second key between: neighbouring keys then share no run of words
    return _mix(_mix(words).add_(_signed(_mixed(key + _GOLDEN))))


def _mix(words: Tensor) -> Tensor:
    """The mixing function, in place; int64 arithmetic wraps, and its shifts to the right carry the sign."""
    for shift, multiplier in _STEPS:
        words ^= (words >> shift).bitwise_and_((1 << (_WORD - shift)) - 1)
        if multiplier != 1:
            words *= _signed(multiplier)
    return words


def _mixed(number: int) -> int:
    """The same function of one number, with the increment before it."""
    number = (number + _GOLDEN) & _MASK
    for shift, multiplier in _STEPS:
        number = (number ^ (number >> shift)) * multiplier & _MASK
    return number


def _signed(number: int) -> int:
    """A 64-bit number as int64 reads it."""
    number &= _MASK
    return number - (1 << _WORD) if number >> (_WORD - 1) else number
