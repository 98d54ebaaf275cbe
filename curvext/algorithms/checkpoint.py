"""States of long runs on disk: written by ``torch.distributed.checkpoint``, whole or not at all.

A checkpoint is a folder. Each state goes into a folder of its own in it, and ``complete.json``, which names the states
that count and what they are of, is replaced last and at once. So a run that is cut off while it writes leaves the state
before.

One file because writing, reading and comparing know one format.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from curvext.algorithms import draws
from curvext.algorithms.products import Products

Answer = TypeVar("Answer")

_COMPLETE = "complete.json"
_VERSION = 1
#: number of the random vector, of seed 0, whose product tells one matrix from another
_PROBE = 1 << 40


class Checkpoint:
    """The state of one run at a path, on one process or several; false, and without effect, where the path is None.

    Args:
        path: a folder that all processes see, which need not exist yet; or None.
        products: the operator. How many products a state took is kept with it, and restored here.
        arguments: what decides the result, beside the operator. Tensors whose first dimension is P_r are vectors; of
            functions of a vector ``[P_r]`` their values for a random one are compared; else ``repr``.

    Raises:
        TypeError: the path is none.
        ValueError: the state there is of another algorithm, matrix or argument, or damaged; on writing, another run has
            written there since.
    """

    def __init__(self, path: Any, products: Products, **arguments: Any) -> None:
        self._products = products
        #: numbers and small tensors of the state, on the CPU
        self.numbers: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._path: Path | None = None
        self._manifest: dict[str, Any] = {}
        if path is None:
            return
        where = f"{products.caller}: checkpoint"
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{where}: expected None or a path, got {type(path).__name__}")
        self._path = Path(path)
        self._where = f"{where} {os.fspath(path)!r}"
        self._processes = _Processes(products)
        #: marks what this run has written
        self._run = self._processes.first(lambda: secrets.token_hex(4))
        count = products.count
        self._begin(_identity(products, arguments), _probe(products, products.vector), count)

    def __bool__(self) -> bool:
        return self._path is not None

    def rows(self, name: str) -> Tensor | None:
        """Vectors of the state, ``[m, P_r]``; None where it has none of the name."""
        return self._rows.get(name)

    def save(
        self,
        numbers: Mapping[str, Any],
        rows: Mapping[str, Tensor] | None = None,
        append: bool = False,
    ) -> None:
        """Writes a state.

        Args:
            numbers: by name; those of earlier states stay unless they are given again.
            rows: vectors ``[m, P_r]`` by name, in place of all of earlier states; or with ``append``, after them.
            append: the latter.
        """
        if self._path is None:
            return
        self.numbers |= {name: torch.as_tensor(v, device="cpu") for name, v in numbers.items()}
        self._write(rows or {}, append)

    # ------------------------------------------------------------------ the folder

    def _begin(self, identity: dict[str, Any], probe: list[float], count: int) -> None:
        self._products.count = count  # without those of the probe
        found = self._processes.first(self._read)
        if found is None:
            sharded = self._processes.sharded
            self._manifest = {
                "version": _VERSION,
                "identity": identity,
                "probe": probe,
                "world": self._processes.world if sharded else 0,
                "parts": [],
                "next": 0,
            }
            self._write({}, append=False)
            return
        self._compare(found, identity, probe)
        self._manifest = found
        with self._processes.shared(), self._damaged():
            self._load()
        self._products.count = int(self.numbers["products"])

    def _read(self) -> dict[str, Any] | None:
        """What ``complete.json`` says; None where there is none."""
        assert self._path is not None
        file = self._path / _COMPLETE
        if self._path.exists() and not self._path.is_dir():
            raise ValueError(f"{self._where}: expected a folder, or a path where there is nothing")
        if not file.exists():
            return None
        with self._damaged():
            found: dict[str, Any] = json.loads(file.read_text())
            if found["version"] != _VERSION:
                raise ValueError(f"of version {found['version']}")
            return found

    def _compare(self, found: dict[str, Any], identity: dict[str, Any], probe: list[float]) -> None:
        different = []
        for topic in dict.fromkeys([*identity, *found["identity"]]):
            then, now = (which.get(topic) for which in (found["identity"], identity))
            if _differ(then, now, self._products.dtype):
                hashed = not (isinstance(then, str) and isinstance(now, str))
                shown = "" if hashed else f": {then} then, {now} now"
                different.append(f"{topic} is not the same{shown}")
        if different:
            raise ValueError(
                f"{self._where}: the state there is of another run: {'; '.join(different)}. Give the same model, data "
                "and arguments, or another path"
            )
        if not _alike(found["probe"], probe, self._products.dtype):
            raise ValueError(
                f"{self._where}: the state there is of another run: A is not the same matrix, by its product with a "
                "random vector: other data, or another model or loss; give the same ones, or another path"
            )

    def _write(self, rows: Mapping[str, Tensor], append: bool) -> None:
        assert self._path is not None
        manifest, processes = self._manifest, self._processes
        self.numbers["products"] = torch.tensor(self._products.count, device="cpu")
        name = f"state-{manifest['next']:06d}-{self._run}"
        state = {f"rows {key} of {processes.holder}": t.detach() for key, t in rows.items()}
        if processes.sharded and rows:
            entries = self._products.vectors.entries(0, self._products.vectors.local)
            state[f"entries of {processes.holder}"] = entries
        if processes.rank == 0:
            state |= {f"number {key}": t for key, t in self.numbers.items()}
        elif not processes.sharded:
            state = {}
        parts = [*manifest["parts"], name] if append else [name]
        before = manifest.get("run")
        self._manifest = {
            **manifest,
            "run": self._run,
            "parts": parts,
            "next": manifest["next"] + 1,
        }
        folder = self._path / name
        with processes.shared():
            if processes.rank == 0:
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # of a run that was cut off while writing it
                folder.mkdir(parents=True)
        with processes.shared():
            processes.save(state, folder)
        with processes.shared():
            if processes.rank == 0:
                self._check_alone(before)
                _replace(self._path / _COMPLETE, json.dumps(self._manifest, indent=1))
                for old in self._path.glob("state-*"):
                    if old.name not in parts:
                        shutil.rmtree(old, ignore_errors=True)

    def _check_alone(self, before: str | None) -> None:
        """Raises where another run has written since this one last did."""
        now = self._read()
        if (None if now is None else now.get("run")) != before:
            raise ValueError(
                f"{self._where}: another run writes there too. Give each its own path; or where several processes make "
                "this call together, give the operator their process_group"
            )

    def _load(self) -> None:
        assert self._path is not None
        found: dict[str, list[Tensor]] = {}
        for part in self._manifest["parts"]:
            folder = self._path / part
            for key in _keys(folder):
                if key.startswith("number "):
                    self.numbers[key.removeprefix("number ")] = _loaded(folder, key)
            rows = [key.removeprefix("rows ") for key in _keys(folder) if key.startswith("rows ")]
            names = {key.rsplit(" of ", 1)[0] for key in rows}
            for name in sorted(names):
                found.setdefault(name, []).append(self._rows_of(folder, name))
        device = self._products.device
        self._rows = {name: torch.cat(parts).to(device) for name, parts in found.items()}

    def _rows_of(self, folder: Path, name: str) -> Tensor:
        """This process's entries of some vectors, whichever processes wrote them."""
        vectors, world = self._products.vectors, self._manifest["world"]
        own = vectors.entries(0, vectors.local)
        if not world:
            return _loaded(folder, f"rows {name} of all")[:, own]
        rank = self._processes.rank
        if world == self._processes.world and torch.equal(
            own, _loaded(folder, f"entries of {rank}")
        ):
            return _loaded(folder, f"rows {name} of {rank}")
        place = torch.full((vectors.size,), -1, device="cpu")
        place[own] = torch.arange(len(own), device="cpu")
        there, rows = [], []
        for other in range(world):
            at = place[_loaded(folder, f"entries of {other}")]
            there.append(at[at >= 0])
            rows.append(_loaded(folder, f"rows {name} of {other}")[:, at >= 0])
        order = torch.cat(there).argsort()
        if len(order) != len(own):
            raise ValueError(
                f"{len(order)} of {len(own)} entries of the vectors {name!r} are there"
            )
        return torch.cat(rows, 1)[:, order]

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        """An error on reading says what to do, unless the disk or the memory is to blame and not the state."""
        try:
            yield
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            raise ValueError(
                f"{self._where}: cannot be read ({type(error).__name__}: {error}); it is damaged or no checkpoint of "
                "this library. Delete it to begin anew"
            ) from error


class _Processes:
    """Who writes a checkpoint: this process alone, or all of a group."""

    def __init__(self, products: Products) -> None:
        operator: Any = products.operator
        self.sharded = products.is_sharded
        group = getattr(operator, "group", None)
        given = getattr(group, "process_group", None) or getattr(operator, "process_group", None)
        if given is None and self.sharded and dist.is_available() and dist.is_initialized():
            given = dist.group.WORLD
        self._group = given
        self.rank = 0 if given is None else dist.get_rank(given)
        self.world = 1 if given is None else dist.get_world_size(given)
        #: whose the vectors are that this process writes
        self.holder = str(self.rank) if self.sharded else "all"

    def first(self, read: Callable[[], Answer]) -> Answer:
        """What the first process reads, on all of them."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found = [read(), None]
            except Exception as error:
                found = [None, error]
        found = self._objects(found)[0]
        if found[1] is not None:
            raise found[1]
        answer: Answer = found[0]
        return answer

    @contextmanager
    def shared(self) -> Iterator[None]:
        """An error inside, on whichever process, is one on all."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        said = self._objects(None if mine is None else f"{type(mine).__name__}: {mine}")
        if mine is not None:
            raise mine
        for rank, text in enumerate(said):
            if text is not None:
                raise RuntimeError(f"rank {rank} raised {text}")

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Writes a folder; each process its part where vectors are sharded, else the first one all of it."""
        dcp = _distributed_checkpoint()
        writer = dcp.FileSystemWriter(folder)
        together = self.sharded and self._group is not None
        with _quietly(), _as_errors(alone=not together):
            if together:
                dcp.save(state, storage_writer=writer, process_group=self._group)
            elif self.rank == 0:
                dcp.save(state, storage_writer=writer, no_dist=True)

    def _objects(self, mine: Any) -> list[Any]:
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, mine, group=self._group)
        return found


def _identity(products: Products, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is of, by topic: numbers and words as they are, tensors and models as hashes."""
    operator: Any = products.operator
    found = {
        "the algorithm": products.caller,
        "the shape of A": list(map(int, operator.shape)),
        "the dtype of A": str(products.dtype),
        **getattr(operator, "identity", dict)(),
    }
    for name, value in arguments.items():
        topic = f"the argument {name}"
        if isinstance(value, Tensor):
            of_entries = value.ndim > 0 and len(value) == products.vectors.local
            found[topic] = (
                draws.fingerprint(products.vectors, value) if of_entries else _hash(value.detach())
            )
        elif callable(value):
            found[topic] = _probe(products, value)
        else:
            found[topic] = repr(value)
    return found


def _differ(then: Any, now: Any, dtype: torch.dtype) -> bool:
    """Whether what a topic says has changed; padded data that is cut into other batches may have another hash."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now) == 3:
        return not _alike(then, now, torch.promote_types(dtype, torch.float32))
    if isinstance(then, dict) and isinstance(now, dict):
        comparable = then["batches"] == now["batches"] or then["shape"] == now["shape"] != 0
        content = comparable and then["content"] != now["content"]
        return bool(then["samples"] != now["samples"] or content)
    return bool(then != now)


def _probe(products: Products, times: Callable[[Tensor], Tensor]) -> list[float]:
    """Numbers by which matrices differ: z·Mz and y·Mz of random vectors, and about ‖M‖_F, their scale.

    Args:
        products: where vectors lie.
        times: M v for a vector ``[P_r]``.
    """
    z, y = draws.normals(products.vectors, 0, range(_PROBE, _PROBE + 2)).to(products.device)
    z, y = (v.to(products.dtype).to(products.working) for v in (z, y))
    image = times(z)
    left, right = torch.stack([z, y, image], 1), torch.stack([image, y], 1)
    table = products.vectors.inner(left, right)
    return [float(table[0, 0]), float(table[1, 0]), float(table[2, 0].sqrt())]


def _alike(then: list[float], now: list[float], dtype: torch.dtype) -> bool:
    """Whether two probes are those of one matrix but for rounding: of each entry of M z, or of a factor of all."""
    eps, size = torch.finfo(dtype).eps, then[-1]
    return all(
        abs(a - b) <= eps ** (2 / 3) * size + 8 * eps * abs(a)
        for a, b in zip(then, now, strict=True)
    )


def _hash(t: Tensor) -> int:
    data = t.cpu().contiguous().view(-1).view(torch.uint8)
    digest = hashlib.blake2b(data.numpy().tobytes(), digest_size=7)
    digest.update(f"{t.dtype} {list(t.shape)}".encode())
    return int.from_bytes(digest.digest(), "little")


def _distributed_checkpoint() -> Any:
    """``torch.distributed.checkpoint``, which takes seconds to import and is for long runs alone."""
    return importlib.import_module("torch.distributed.checkpoint")


def _keys(folder: Path) -> list[str]:
    return sorted(
        _distributed_checkpoint().FileSystemReader(folder).read_metadata().state_dict_metadata
    )


def _loaded(folder: Path, key: str) -> Tensor:
    dcp = _distributed_checkpoint()
    reader = dcp.FileSystemReader(folder)
    kept: Any = reader.read_metadata().state_dict_metadata[key]
    t = torch.empty(kept.size, dtype=kept.properties.dtype, device="cpu")
    with _quietly(), _as_errors(alone=True):
        dcp.load({key: t}, storage_reader=reader, no_dist=True)
    return t


@contextmanager
def _as_errors(alone: bool) -> Iterator[None]:
    """What PyTorch raises for failures on some ranks is no ``Exception``; here it is one, of one process its own."""
    try:
        yield
    except BaseException as failed:
        if not isinstance(failed, _distributed_checkpoint().CheckpointException):
            raise
        if alone:
            raise next(iter(failed.failures.values()))[0] from None
        said = [f"rank {r} raised {type(e).__name__}: {e}" for r, (e, _) in failed.failures.items()]
        raise RuntimeError("; ".join(said)) from failed


def _is_of_the_machine(error: Exception) -> bool:
    """Whether the disk or the memory failed, so that what could not be read may be sound."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, OSError):
        return not isinstance(error, missing)
    memory = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, memory) or "can't allocate memory" in str(error)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's warning that one process alone writes or reads, as is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is .*assuming the intent is to")
        yield


def _replace(file: Path, text: str) -> None:
    """Writes a file so that it is the old or the new one whenever the process ends."""
    new = file.with_suffix(".new")
    with new.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
