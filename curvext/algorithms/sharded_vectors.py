"""Vectors of which each process holds some entries, where an operator has ``inner`` and ``entries``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from curvext.algorithms.vectors import Pair, Vectors, units

#: a column of a QR decomposition that keeps less than so many units of rounding of its length adds no direction
_NOTHING = 8
#: of sums of integers over the processes
_MODULUS = 1 << 60
#: passes of Gram-Schmidt at most for one column; two suffice unless a column is rounding alone
_PASSES = 4


class ShardedVectors(Vectors):
    """Vectors of which each process holds the entries that an operator names; sums go through its ``inner``.

    Args:
        operator: with ``inner(a [P_r, K], b [P_r, m]) -> [K, m]``, summed over the processes, and ``entries``, the
            global indices of its local entries.
        caller: the name of the public function, for errors.
        size: P.
        like: a tensor of the dtype and device of the vectors.

    Raises:
        TypeError: ``entries`` is no sequence of integers, or ``inner`` returns no tensor.
        ValueError: they are out of range, or an index is on no process or on several.
    """

    def __init__(self, operator: Any, caller: str, size: int, like: Tensor) -> None:
        super().__init__(size)
        self._inner = operator.inner
        self._caller = caller
        self._like = like
        self._entries = _indices(operator.entries, caller, size)
        self.local = len(self._entries)
        # as many as there are, with the sums of the indices and of their squares: where one is twice, another is not
        squares = int((self._entries * self._entries).sum()) if self.local else 0  # modulo 2⁶⁴
        holders, *found = self._sums(
            [int(self.local > 0), self.local, int(self._entries.sum()), squares]
        )
        wanted = [size, size * (size - 1) // 2, (size - 1) * size * (2 * size - 1) // 6]
        if found != [number % _MODULUS for number in wanted]:
            what = f"{found[0]} in all" if found[0] != size else "some twice and some not at all"
            raise ValueError(
                f"{caller}: A.entries: expected each of {size} entries on one process, got {what}"
            )
        self.share = -(-size // max(1, holders))

    def entries(self, start: int, stop: int) -> Tensor:
        return self._entries[start:stop]

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        found = self._inner(a, b)
        wanted = (a.shape[1], b.shape[1])
        if not isinstance(found, Tensor) or found.shape != wanted:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"{self._caller}: A.inner: expected {list(wanted)} for columns {list(a.shape)} and {list(b.shape)}, "
                f"got {got}"
            )
        return found.double()

    def dots(self, pairs: Sequence[Pair], scratch: Tensor | None = None) -> list[Tensor]:
        left, right = _distinct([a for a, _ in pairs]), _distinct([b for _, b in pairs])
        first = _stacked(left)
        second = first if _same(left, right) else _stacked(right)
        table = self.inner(first.T, second.T)  # one reduction for all pairs
        count = len(pairs[0][0])
        found = []
        for a, b in pairs:
            i, j = _place(left, a) * count, _place(right, b) * count
            found.append(table[i : i + count, j : j + count].diagonal())
        return found

    def remove(self, row: Tensor, basis: Tensor) -> None:
        if len(basis):
            coefficients = self.inner(basis.T, row.unsqueeze(1))[:, 0]
            row.addmv_(basis.T, coefficients.to(row.dtype), alpha=-1)

    def orthogonalise(self, rows: Tensor, count: int, scratch: Tensor | None = None) -> Tensor:
        row = rows[count]
        numbers = self.inner(rows[: count + 1].T, row.unsqueeze(1))[:, 0]
        coefficients, square = numbers[:-1], numbers[-1]
        row.addmv_(rows[:count].T, coefficients.to(row.dtype), alpha=-1)
        # by Pythagoras: what was taken out is small in the last pass, and where it is not, a further pass follows
        return (square - coefficients.square().sum()).clamp(min=0).sqrt()

    def qr(self, columns: Tensor) -> Pair:
        """By Gram-Schmidt, each column repeated until it keeps its length; one that is rounding is zero in Q."""
        count = columns.shape[1]
        rows = torch.empty_like(columns.T, memory_format=torch.contiguous_format)
        triangle = torch.zeros(count, count, dtype=torch.float64, device=columns.device)
        for j in range(count):
            rows[j] = columns[:, j]
            original = before = None
            for _ in range(_PASSES):
                numbers = self.inner(rows[: j + 1].T, rows[j].unsqueeze(1))[:, 0]
                coefficients, square = numbers[:-1], numbers[-1].clamp(min=0).sqrt()
                original = square if original is None else original
                if before is not None and bool(square > before / 2):
                    break
                rows[j].addmv_(rows[:j].T, coefficients.to(rows.dtype), alpha=-1)
                triangle[:j, j] += coefficients
                before = square
            # nan is kept, to be seen in what is made of it
            keeps = ~(square <= _NOTHING * torch.finfo(rows.dtype).eps * cast(Tensor, original))
            triangle[j, j] = torch.where(keeps, square, 0.0)
            rows[j] *= torch.where(keeps, 1 / square, 0.0).to(rows.dtype)
        return rows.T, triangle.to(columns.dtype)

    def whole(self, columns: Tensor) -> Tensor:
        return self.inner(units(self, range(self.size), columns), columns)

    def mine(self, columns: Tensor) -> Tensor:
        return columns[self._entries.to(columns.device)]

    def add(self, number: int) -> int:
        return self._sums([number])[0]

    def _sums(self, numbers: Sequence[int]) -> list[int]:
        """The sums over the processes of some integers of each, modulo 2⁶⁰; a process without entries counts as 0."""
        # by digits of 12 bits, whose sums over 4096 processes float32 holds exactly
        digits = self._like.new_zeros(self.local, 5 * len(numbers))
        digits[:1] = torch.tensor(
            [float(number >> 12 * i & 0xFFF) for number in numbers for i in range(5)], device="cpu"
        )
        sums = [round(digit) for digit in self.inner(self._first(), digits)[0].tolist()]
        return [
            sum(digit << 12 * i for i, digit in enumerate(sums[at : at + 5])) % _MODULUS
            for at in range(0, len(sums), 5)
        ]

    def any(self, mask: Tensor) -> bool:
        marks = (mask.unsqueeze(1) if mask.ndim == 1 else mask.flatten(1)).to(self._like.dtype)
        return bool(self.inner(torch.ones_like(marks[:, :1]), marks).sum() > 0)

    def _first(self) -> Tensor:
        """The column with a 1 at the first local entry, by which a number of each process is summed."""
        one = self._like.new_zeros(self.local, 1)
        one[:1] = 1
        return one


def is_sharded(operator: Any) -> bool:
    """Whether an operator's vectors lie on several processes: it has ``inner`` and ``entries``."""
    return all(getattr(operator, name, None) is not None for name in ("inner", "entries"))


def _indices(entries: Any, caller: str, size: int) -> Tensor:
    found = torch.as_tensor(entries, device="cpu")
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise TypeError(
            f"{caller}: A.entries: expected the global indices [P_r] of the local entries, got {found.dtype} "
            f"{list(found.shape)}"
        )
    found = found.to(torch.int64)
    if len(found) and (int(found.min()) < 0 or int(found.max()) >= size):
        raise ValueError(f"{caller}: A.entries: expected indices from 0 to {size - 1}")
    increasing = bool((found[1:] > found[:-1]).all())
    if not increasing and len(found.unique()) < len(found):
        raise ValueError(f"{caller}: A.entries: an index occurs twice")
    return found


def _distinct(several: list[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    for t in several:
        if not any(t is other for other in found):
            found.append(t)
    return found


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _stacked(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _place(several: list[Tensor], wanted: Tensor) -> int:
    return next(i for i, t in enumerate(several) if t is wanted)
