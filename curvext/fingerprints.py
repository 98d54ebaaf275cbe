"""Fingerprints of tensors: a few numbers that show whether a parameter or a batch has changed.

Version counters and addresses show most changes, but not ``p.data.neg_()``, nor a loader that augments at random.
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
#: words of one chunk, which is copied
_AT_ONCE = 1 << 22
_MULTIPLIER = -7046029254386353131  # odd, its bits irregular
#: (dtype, device) → random weights, as many as were needed so far
_weights: dict[tuple[torch.dtype, torch.device], Tensor] = {}
#: weights that grew too short; kept alive, because another CUDA stream may still be reading them
_outgrown: list[Tensor] = []


def strided_parts(several: Iterable[Tensor]) -> list[Tensor]:
    """Strided tensors that make up some tensors: a strided one itself, the indices and values of a sparse one."""
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
            raise TypeError(
                f"a tensor of layout {t.layout}; only strided and sparse tensors are supported"
            )
    return found


def fingerprints(several: Sequence[Tensor]) -> list[int]:
    """Numbers that almost any change of the tensors' values changes, computed at the speed of memory.

    The sum of a tensor's bits as integers detects a change of any size in any place. A weighted sum in the tensor's own
    dtype detects what may keep the first sum: a change of sign, a power of two, another order. Synchronises each
    device once.
    """
    if not several:
        return []
    found: list[int] = []
    kind = several[0].device.type
    cast = torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False) if cast else nullcontext():
        parts: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in coalesced(several):
            for part in _parts(t):
                parts.setdefault((part.dtype, part.device), []).append(part)
        for (dtype, _), scalars in parts.items():
            found += torch.stack(scalars).view(_WORD[dtype.itemsize]).tolist()
    return found


def coalesced(several: Sequence[Tensor]) -> list[Tensor]:
    """The tensors; small ones of one dtype and device are concatenated, because each PyTorch call costs more."""
    found: list[Tensor] = []
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in several:
        if t.numel() > _SMALL:
            found.append(t.detach())
        else:
            small.setdefault((t.dtype, t.device), []).append(t.detach().reshape(-1))
    return [*found, *(torch.cat(group) for group in small.values())]


def _parts(t: Tensor) -> list[Tensor]:
    """Scalars that make up the fingerprint of one tensor."""
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
    """One pseudorandom weight for each value; equal counts get equal weights."""
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


def sample_hashes(several: Sequence[Tensor]) -> tuple[int, int]:
    """Two hashes of a batch's samples: one does not depend on their order, the other does.

    A sample is one row of each tensor that has as many rows as the first.
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
    """One int64 hash for each row of a tensor that is read as ``rows`` rows."""
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.numel() == 0:
        return torch.full((rows,), t.ndim, dtype=torch.int64, device=t.device)
    flat = t.contiguous().view(rows, -1)
    size = t.dtype.itemsize
    # the word size depends on the shape alone, not on the address
    if flat.shape[1] * size % 8 == 0:
        flat = flat if flat.storage_offset() * size % 8 == 0 else flat.clone()
        words = flat.view(torch.int64)
    else:
        words = flat.view(_WORD[size]).to(torch.int64)
    weights = _weights_for(words[0])
    runs = words.split(max(1, _AT_ONCE // len(weights)))
    return torch.cat([(_mixed(run) * weights).sum(1) for run in runs])


def _mixed(words: Tensor) -> Tensor:
    """Folds the high bits into the low ones, which sums and products of integers never do."""
    return words ^ (words >> 32)


#: elements of one row of a fingerprint, and of one chunk of rows
_ROW, _PIECE = 1 << 14, 1 << 16


def portable_fingerprint(several: Iterable[Tensor]) -> int:
    """A hash of shapes, dtypes and values that every process computes alike, as a signed 64-bit integer.

    It adds integers only, so the result does not depend on threads, addresses or the device.
    """
    parts = strided_parts(several)
    found = [str([(str(t.dtype), tuple(t.shape)) for t in parts])]
    with torch.no_grad():
        numbers = [number.cpu() for t in coalesced(parts) for number in _numbers(t)]
    if numbers:
        found.append(str(torch.stack(numbers).tolist()))
    digest = hashlib.blake2b("".join(found).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _numbers(t: Tensor) -> list[Tensor]:
    """Two int64 hashes of a tensor: of its rows of ``_ROW`` elements, and of the remainder."""
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
