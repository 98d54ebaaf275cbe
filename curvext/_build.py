"""``python -m curvext build``: compiles the extension against the torch that is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from curvext import _extension


class BuildError(RuntimeError):
    """The extension cannot be compiled here; the message names what is missing, or quotes the compiler."""


def build(say: Callable[[str], None] = print, jobs: int | None = None) -> Path:
    """Compiles ``curvext._C`` and puts it where the next ``import curvext`` finds it.

    The file goes into the package or, where the package is not writable, into a cache folder named after torch,
    Python, the sources and the compiler (:func:`curvext._extension.cache_folder`). It replaces an earlier one only
    once it is complete and loads.

    Args:
        say: takes each line of progress.
        jobs: how many files to compile at a time; None for as many as there are processors.

    Returns:
        The file.

    Raises:
        BuildError: sources, ninja, setuptools, a compiler or Python's headers are missing, or the compiler failed.
    """
    root = _extension.source_root()
    if root is None:
        raise BuildError(
            f"the folder csrc with the C++ sources is missing from {_extension.PACKAGE}; install curvext again"
        )
    environment = _environment(jobs)
    compiler = _check_tools(environment)
    target = _target(compiler)
    say(f"compiling curvext {root / 'csrc'} against torch {torch.__version__} with {compiler}")
    with tempfile.TemporaryDirectory(prefix="curvext-") as folder:
        _run(root, Path(folder), environment, say)
        built = Path(folder) / "curvext" / f"_C{_extension.SUFFIX}"
        # a process may have the old file open: it keeps that one
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".new")
        shutil.copyfile(built, beside)
        beside.chmod(0o755)
    _check_loads(beside)
    beside.replace(target)
    say(f"{target} ({target.stat().st_size / 2**20:.1f} MiB)")
    return target


def _environment(jobs: int | None) -> dict[str, str]:
    """The environment of this process, with its Python's scripts (ninja among them) on the path."""
    environment = dict(os.environ)
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    environment["PATH"] = os.pathsep.join([*scripts, environment.get("PATH", "")])
    if jobs is not None:
        environment["MAX_JOBS"] = str(jobs)
    return environment


def _check_tools(environment: dict[str, str]) -> str:
    """The C++ compiler and its version as ``g++-12.2.0``, once everything that is needed is there."""
    path = environment["PATH"]
    if shutil.which("ninja", path=path) is None:
        raise BuildError("ninja is missing; install it with: python -m pip install ninja")
    if importlib.util.find_spec("setuptools") is None:
        raise BuildError("setuptools is missing; install it with: python -m pip install setuptools")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise BuildError(
            f"{header} is missing: install the development files of Python {sys.version_info.major}."
            f"{sys.version_info.minor}, as python3-dev of Debian and Ubuntu"
        )
    command = shlex.split(environment.get("CXX", "c++"))
    if shutil.which(command[0], path=path) is None:
        raise BuildError(
            f"there is no C++ compiler {command[0]!r}: install g++ or clang++, or name yours in CXX"
        )
    version = subprocess.run(
        [*command, "-dumpfullversion", "-dumpversion"],
        capture_output=True,
        text=True,
        env=environment,
    ).stdout.strip()
    return f"{Path(command[0]).name}-{version or 'unknown'}"


def _target(compiler: str) -> Path:
    name = f"_C{_extension.SUFFIX}"
    if os.access(_extension.PACKAGE, os.W_OK):
        return _extension.PACKAGE / name
    return _extension.cache_folder() / compiler / name


def _run(root: Path, folder: Path, environment: dict[str, str], say: Callable[[str], None]) -> None:
    """Compiles in a subprocess and reports the file of each step."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from curvext._compile import compile_into\n"
        f"compile_into(Path({str(root)!r}), Path({str(folder)!r}))\n"
    )
    command = [sys.executable, "-c", code]
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            step = re.match(r"\[(\d+/\d+)\].* -c (\S+)", line)
            if step:
                say(f"  [{step[1]}] {Path(step[2]).name}")
    if process.returncode != 0:
        first = next((i for i, line in enumerate(lines) if line.startswith("FAILED")), -30)
        said = "".join(lines[first:][:60])
        raise BuildError(f"the compilation failed:\n{said}")


def _check_loads(path: Path) -> None:
    """Loads the new extension in a subprocess, because this process may hold an earlier one."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from curvext import _extension\n"
        f"_extension.load(Path({str(path)!r}))\n"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if tried.returncode != 0:
        path.unlink()
        raise BuildError(
            f"it was compiled but does not load: {tried.stderr.strip().splitlines()[-1]}"
        )
