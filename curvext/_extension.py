"""The compiled extension ``curvext._C``: loaded here, once, or the reason why it is missing."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import platform
import sys
import warnings
from pathlib import Path
from types import FrameType, ModuleType

import torch  # libtorch must be in the process before anything links against it


class ReferenceFallbackWarning(UserWarning):
    """The native kernels are missing, so a PyTorch reference runs in their place; said once."""


BUILD_COMMAND = "python -m curvext build"

PACKAGE = Path(__file__).resolve().parent
#: the end of the file name of an extension for this Python: ".cpython-311-x86_64-linux-gnu.so"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def source_root() -> Path | None:
    """The folder that holds ``csrc``: the package where it was installed, or the checkout around it."""
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / "csrc" / "bindings.cpp").is_file():
            return folder
    return None


def cache_folder() -> Path:
    """Where extensions are kept that cannot lie in the package; one folder for each compiler is inside.

    Named after torch, Python and the sources, so that one that was built for others is never found:
    ``~/.cache/curvext/torch-2.13.0+cpu-cpython-311-x86_64-linux-gnu-0123456789ab``.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    python = SUFFIX.split(".")[1] if SUFFIX.count(".") > 1 else platform.python_version()
    key = f"torch-{torch.__version__}-{python}-{_digest_of_sources()}"
    return Path(base).expanduser() / "curvext" / key


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    root = source_root()
    if root is not None:
        for path in sorted((root / "csrc").rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def candidates() -> list[Path]:
    """The files to try, first the package's own, then those of the cache, the newest first."""
    own = [PACKAGE / f"_C{SUFFIX}"]
    kept = sorted(
        cache_folder().glob(f"*/_C{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    return [path for path in [*own, *kept] if path.is_file()]


def load(path: Path) -> ModuleType:
    """The extension in a file.

    Raises:
        ImportError: it does not load, or was built against another torch, whose C++ interface may differ.
    """
    loader = importlib.machinery.ExtensionFileLoader("curvext._C", str(path))
    spec = importlib.util.spec_from_loader("curvext._C", loader)
    assert spec is not None
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    built = found.build_info()["torch"]
    if _minor(built) != _minor(torch.__version__):
        raise ImportError(f"it was built against torch {built}")
    return found


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def _load() -> tuple[ModuleType | None, str | None]:
    if "curvext._C" in sys.modules:  # put there in place of the compiled one
        return sys.modules["curvext._C"], None
    reasons = []
    for path in candidates():
        try:
            found = load(path)
        except ImportError as error:
            reasons.append(f"{path} does not load with torch {torch.__version__}: {error}")
            continue
        sys.modules["curvext._C"] = found
        return found, None
    if reasons:
        return None, f"{reasons[0]}; most likely it was built against another torch"
    return None, "they have not been compiled"


module, missing_because = _load()


def build_info() -> dict[str, object] | None:
    """How the extension was built and which instruction set it uses; None where it is missing."""
    return None if module is None else module.build_info()


def kernels_for(device: str) -> ModuleType | None:
    """The submodule that holds the kernels of a device type, or None where it was not built."""
    return None if module is None else getattr(module, device, None)


def advice(device: str) -> str:
    """What is missing for a device type and which command builds it."""
    if module is None:
        return (
            f"curvext: the native kernels are missing ({missing_because}), so the slower PyTorch references run. "
            f"Compile them with: {BUILD_COMMAND}"
        )
    return (
        f"curvext: this build has no {device} kernels, so the slower PyTorch references run on {device} tensors. "
        f"Compile them beside a CUDA build of torch and a CUDA toolkit with: CURVEXT_CUDA=1 {BUILD_COMMAND}"
    )


_told: set[str] = set()


def warn_once(device: str) -> None:
    """Warns with :func:`advice` at the user's line that led here: once, or once for a device that alone is missing."""
    told = "all" if module is None else device
    if told in _told:
        return
    _told.add(told)
    warnings.warn(advice(device), ReferenceFallbackWarning, stacklevel=_level_of_user() + 1)


def _level_of_user() -> int:
    """How many frames above the caller the user's is: the one that called curvext, through torch or not.

    The outermost of curvext counts, as there are frames of the standard library between its own.
    """
    curvext, torch_ = str(PACKAGE) + os.sep, str(Path(torch.__file__).parent) + os.sep
    files = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    level = max((i for i, file in enumerate(files) if file.startswith(curvext)), default=0) + 1
    while level < len(files) and files[level].startswith(torch_):
        level += 1
    return min(level, len(files) - 1)
