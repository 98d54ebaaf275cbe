"""What tensors hold, in a few numbers: to see that a parameter or a batch is no longer what it was.

Versions and addresses tell of most changes, but not of ``p.data.neg_()`` nor of a loader that augments at random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from curvext.torch_internals.tensors import sparse_parts

_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: tensors of at most so many elements are read together
_SMALL = 1 << 14
#: words that are worked on at once, in memory of their own
_AT_ONCE = 1 << 22
_MULTIPLIER = -7046029254386353131  # odd, its bits irregular
#: (dtype, device) → random weights, as many as were needed so far
_weights: dict[tuple[torch.dtype, torch.device], Tensor] = {}
#: shorter ones than were needed later; another CUDA stream may be reading them, so their memory is not given back
_outgrown: list[Tensor] = []


def stored(several: Iterable[Tensor]) -> list[Tensor]:
    """The tensors with storage of their own that make up some tensors: a sparse one is indices and values."""
    found: list[Tensor] = []
    for t in several:
        if t.layout is torch.strided:
            found.append(t)
        elif t.layout is torch.sparse_coo:
            found += sparse_parts(t)
        elif t.layout in (torch.sparse_csr, torch.sparse_bsr):
            found += (t.crow_indices(), t.col_indices(), t.values())
        elif t.layout in (torch.sparse_csc, torch.sparse_bsc):
            found += (t.ccol_indices(), t.row_indices(), t.values())
        else:
            raise TypeError(f"a tensor of layout {t.layout}; strided and sparse ones are known")
    return found


def contents(several: Sequence[Tensor]) -> list[int]:
    """Numbers that change with almost any change of what the tensors hold, read at the speed of memory.

    The sum of a tensor's bits as integers sees a change of any size in any place; a weighted sum in its own dtype sees
    what keeps that sum, as a change of sign, a power of two or another order may. A device is waited for once.
    """
    if not several:
        return []
    found: list[int] = []
    kind = several[0].device.type
    cast = torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False) if cast else nullcontext():
        parts: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in gathered(several):
            for part in _parts(t):
                parts.setdefault((part.dtype, part.device), []).append(part)
        for (dtype, _), scalars in parts.items():
            found += torch.stack(scalars).view(_WORD[dtype.itemsize]).tolist()
    return found


def gathered(several: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, the small ones of a kind in one: a call of PyTorch costs more than to read them."""
    found: list[Tensor] = []
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in several:
        if t.numel() > _SMALL:
            found.append(t.detach())
        else:
            small.setdefault((t.dtype, t.device), []).append(t.detach().reshape(-1))
    return [*found, *(torch.cat(group) for group in small.values())]


def _parts(t: Tensor) -> list[Tensor]:
    """Scalars that tell what a tensor holds."""
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.numel() == 0:
        return []
    flat = t.contiguous().view(-1)
    if not t.is_floating_point() or t.dtype.itemsize == 1:
        words = flat.view(_WORD[t.dtype.itemsize]).to(torch.int64)
        return [(_mixed(words) * _weights_for(words)).sum()]
    per_word = 8 // t.dtype.itemsize
    whole = flat.numel() // per_word * per_word
    aligned = flat.storage_offset() % per_word == 0
    parts = [flat[:whole].view(torch.int64).sum()] if aligned and whole else []
    if not parts or whole < flat.numel():
        rest = flat[whole:] if parts else flat
        parts.append(rest.view(_WORD[t.dtype.itemsize]).sum(dtype=torch.int64))
    if t.ndim > 1:
        rows = flat.view(t.shape[0], -1)
        flat = (rows @ _weights_for(rows[0])).to(torch.promote_types(t.dtype, torch.float32))
    parts.append(torch.dot(flat, _weights_for(flat)))
    return parts


def _weights_for(values: Tensor) -> Tensor:
    """One irregular weight for each of some values, the same for the same number of them."""
    kind = (values.dtype, values.device)
    if kind not in _weights or len(_weights[kind]) < len(values):
        with torch.inference_mode(False):
            generator = torch.Generator("cpu").manual_seed(0x5EED)
            count = max(1024, 2 * len(values))
            if values.is_floating_point():
                drawn = (
                    torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") + 0.5
                )
            else:
                drawn = (
                    torch.randint(-(2**62), 2**62, (count,), generator=generator, device="cpu") * 2
                    + 1
                )
            if kind in _weights:
                _outgrown.append(_weights[kind])
            _weights[kind] = drawn.to(values.device, values.dtype)
    return _weights[kind][: len(values)]


def samples(several: Sequence[Tensor]) -> tuple[int, int]:
    """What a batch of tensors holds: a number for its samples in whatever order, and one for them in their order.

    A sample is one row of every tensor that has as many rows as the first.
    """
    rows = next((t.shape[0] for t in several if t.ndim), 1)
    device = next((t.device for t in several), torch.device("cpu"))
    with torch.no_grad():
        total = torch.zeros(rows, dtype=torch.int64, device=device)
        for t in several:
            by_sample = t.ndim > 0 and t.shape[0] == rows
            numbers = _row_numbers(t.detach(), rows if by_sample else 1)
            total = total * _MULTIPLIER + numbers.to(device)
        total = _mixed(_mixed(total) * _MULTIPLIER)
        both = torch.stack([total.sum(), (total * _weights_for(total)).sum()])
    in_any_order, in_order = both.tolist()
    return in_any_order, in_order


def _row_numbers(t: Tensor, rows: int) -> Tensor:
    """A number for each of so many rows of a tensor, int64."""
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.numel() == 0:
        return torch.full((rows,), t.ndim, dtype=torch.int64, device=t.device)
    flat = t.contiguous().view(rows, -1)
    size = t.dtype.itemsize
    # which words are read depends on the shape alone, not on where the tensor lies
    if flat.shape[1] * size % 8 == 0:
        flat = flat if flat.storage_offset() * size % 8 == 0 else flat.clone()
        words = flat.view(torch.int64)
    else:
        words = flat.view(_WORD[size]).to(torch.int64)
    weights = _weights_for(words[0])
    runs = words.split(max(1, _AT_ONCE // len(weights)))
    return torch.cat([(_mixed(run) * weights).sum(1) for run in runs])


def _mixed(words: Tensor) -> Tensor:
    """High bits brought down: sums and products carry nothing to below."""
    return words ^ (words >> 32)


#: elements of a row of a fingerprint, and of the rows that are worked on at once
_ROW, _PIECE = 1 << 14, 1 << 16


def fingerprint(several: Iterable[Tensor]) -> int:
    """A number for shapes, dtypes and contents that is the same in every process, a signed integer of 64 bits.

    Integers alone are added, so neither threads nor addresses nor the device matter.
    """
    parts = stored(several)
    found = [str([(str(t.dtype), tuple(t.shape)) for t in parts])]
    with torch.no_grad():
        numbers = [number.cpu() for t in gathered(parts) for number in _numbers(t)]
    if numbers:
        found.append(str(torch.stack(numbers).tolist()))
    digest = hashlib.blake2b("".join(found).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _numbers(t: Tensor) -> list[Tensor]:
    """Scalars, int64, for what a tensor holds: of rows of one length, and of what is left."""
    flat = (torch.view_as_real(t) if t.is_complex() else t).detach().contiguous().view(-1)
    whole = flat.numel() // _ROW * _ROW
    found = []
    if whole:
        pieces = flat[:whole].split(_PIECE)  # at the speed of the cache, not of memory
        rows = torch.cat([_row_numbers(piece, piece.numel() // _ROW) for piece in pieces])
        found.append((_mixed(rows) * _weights_for(rows)).sum())
    if whole < flat.numel():
        found.append(_mixed(_row_numbers(flat[whole:], 1)).sum())
    return found
