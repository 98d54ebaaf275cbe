"""A diagonal on disk, as safetensors: readable elsewhere, and loading it runs no code."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from curvext._version import __version__

#: the entries of a file's metadata that are ours: the version that wrote it, and the names in order
WRITER, ORDER = "curvext", "curvext.names"


def save_diagonal(
    diagonal: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a diagonal by parameter, such as :func:`curvext.fisher_diagonal` returns, to a file.

    An existing file is replaced in one step once the new one is complete: when writing fails, the old
    one is still there. The format is safetensors, so other programs can read it.

    Args:
        diagonal: ``{name: tensor}``; bits, shapes, dtypes and the order of names are kept.
        path: the file; its folder must exist.
        metadata: words kept with it, say ``{"kind": "exact", "data": "task A"}``. A diagonal does not show
            which matrix it is of, so write it down. The version of curvext is added;
            ``safetensors.safe_open(path, "pt").metadata()`` reads all of it.

    Raises:
        ImportError: safetensors is not installed.
        TypeError, ValueError: an argument is of another form; the message names it.
        FileNotFoundError: there is no such folder; OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch, curvext as cx
        >>> path = tempfile.mkdtemp() + "/fisher.safetensors"
        >>> cx.save_diagonal({"weight": torch.tensor([2.0, 0.5])}, path, {"kind": "exact"})
        >>> cx.load_diagonal(path)
        {'weight': tensor([2.0000, 0.5000])}
    """
    _check_diagonal(diagonal)
    _check_metadata(metadata)
    words = {**(metadata or {}), ORDER: json.dumps(list(diagonal))}
    write_tensors("save_diagonal", diagonal, path, words)


def write_tensors(
    caller: str,
    named: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    words: Mapping[str, str],
) -> None:
    """Writes tensors and words to a safetensors file in one step; ``caller`` is named in errors."""
    target = _as_path(caller, path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{caller}: path: there is no folder {str(target.parent)!r}")
    safetensors = _import_safetensors(caller)
    # copies: blocks of one flat vector share its storage, which the format refuses
    tensors = {
        name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, t in named.items()
    }
    words = {**words, WRITER: __version__}
    # beside the target, since a file is replaced in one step only within a file system
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        safetensors.torch.save_file(tensors, part, metadata=words)
        os.replace(part, target)
    except safetensors.SafetensorError as error:
        raise OSError(f"{caller}: path: {target} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_diagonal(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Reads what :func:`save_diagonal` wrote: the same names in the same order, the same bits.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or another program's (a model's weights, say, which would
            pass for a diagonal by names and shapes).
    """
    tensors, words = read_tensors("load_diagonal", path, device, ORDER, "save_diagonal")
    return {name: tensors[name] for name in json.loads(words[ORDER])}


def read_tensors(
    caller: str, path: str | os.PathLike[str], device: str | torch.device, key: str, writer: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The content of a file of :func:`write_tensors` whose metadata has ``key``, as files by ``writer`` do."""
    source = _as_path(caller, path)
    if not isinstance(device, (str, torch.device)):
        raise TypeError(
            f"{caller}: device: expected a str or torch.device, got {type(device).__name__}"
        )
    safetensors = _import_safetensors(caller)
    try:
        with safetensors.safe_open(source, framework="pt", device=str(device)) as file:
            words = file.metadata() or {}
            if WRITER not in words or key not in words:
                raise ValueError(
                    f"{caller}: path: {source} was not written by {writer}; "
                    "safetensors.torch.load_file reads any such file"
                )
            names: list[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}, words
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{caller}: path: {source} is no whole safetensors file: {error}"
        ) from error


def _import_safetensors(caller: str) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{caller}: needs the package safetensors: pip install curvext[save]"
        ) from error
    return safetensors


def _as_path(caller: str, path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{caller}: path: expected a str or os.PathLike, got {type(path).__name__}")
    return Path(path)


def _check_diagonal(diagonal: object) -> None:
    wanted = "save_diagonal: diagonal: expected {name: tensor}, got "
    if not isinstance(diagonal, Mapping):
        raise TypeError(wanted + type(diagonal).__name__)
    if not diagonal:
        raise ValueError(wanted + "an empty one")
    for name, value in diagonal.items():
        if not isinstance(name, str):
            raise TypeError(f"{wanted}the name {name!r} of type {type(name).__name__}")
        if not isinstance(value, Tensor):
            raise TypeError(f"{wanted}{type(value).__name__} for {name!r}")
        if value.layout != torch.strided:
            raise TypeError(f"{wanted}a tensor of layout {value.layout} for {name!r}")


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    wanted = "save_diagonal: metadata: expected {str: str}, got "
    if not isinstance(metadata, Mapping):
        raise TypeError(wanted + type(metadata).__name__)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{wanted}{key!r}: {value!r}; format or json.dumps makes it a str")
        if key in (WRITER, ORDER):
            raise ValueError(f"save_diagonal: metadata: the key {key!r} is written by curvext")
