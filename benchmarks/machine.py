"""Which machine this is, told from its hardware alone, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.timing import interleaved
from curvext import _extension

#: (vendor, family, model) of processors that hide their name behind "Xeon" or "EPYC"; models as ranges
ARCHITECTURES = [
    ("GenuineIntel", 6, range(85, 86), "cascade-lake"),
    ("GenuineIntel", 6, range(106, 109), "ice-lake"),
    ("GenuineIntel", 6, range(143, 144), "sapphire-rapids"),
    ("GenuineIntel", 6, range(207, 208), "emerald-rapids"),
    ("GenuineIntel", 6, range(173, 175), "granite-rapids"),
    ("AuthenticAMD", 23, range(0, 48), "zen"),
    ("AuthenticAMD", 23, range(48, 256), "zen2"),
    ("AuthenticAMD", 25, range(0, 16), "zen3"),
    ("AuthenticAMD", 25, range(16, 32), "zen4"),
    ("AuthenticAMD", 25, range(32, 96), "zen3"),
    ("AuthenticAMD", 25, range(96, 256), "zen4"),
    ("AuthenticAMD", 26, range(0, 256), "zen5"),
]
#: whose versions decide what is measured
PACKAGES = (
    "numpy",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "backpack-for-pytorch",
    "opacus",
    "laplace-torch",
    "asdfghjkl",
)


def _cpuinfo() -> dict[str, str]:
    try:
        with open("/proc/cpuinfo") as lines:
            pairs = (line.split(":", 1) for line in lines if ":" in line)
            found: dict[str, str] = {}
            for key, value in pairs:
                found.setdefault(key.strip(), value.strip())
            return found
    except OSError:
        return {}


def processor() -> str:
    """The processor's own name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def architecture() -> str:
    """The processor's design, from its family and model; its name where the table does not know it."""
    info = _cpuinfo()
    if info.get("cpu family", "").isdigit():
        family, model = int(info["cpu family"]), int(info.get("model", "0"))
        for vendor, known, models, name in ARCHITECTURES:
            if info.get("vendor_id") == vendor and family == known and model in models:
                return name
    return slug(re.sub(r"\(.*?\)|@.*|processor|cpu", " ", processor(), flags=re.I))


def slug(words: str) -> str:
    """Lower case, and dashes for what is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(device: str) -> str:
    """The folder of this machine's results: hardware only, no name that a person gave it."""
    if device == "cuda":
        return f"gpu-{slug(torch.cuda.get_device_name())}"
    return f"cpu-{cores()}core-{architecture()}"


def commit() -> str:
    """The commit that is measured, marked where the working tree differs from it.

    ``CURVEXT_COMMIT`` names it where the tree was copied without its history.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except OSError:  # a machine without git
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "curvext", "csrc", "benchmarks", ":!*.json")
    named = git("rev-parse", "HEAD") or os.environ.get("CURVEXT_COMMIT") or "unknown"
    return named + (" with changes" if changed else "")


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: str) -> dict[str, object]:
    """Hardware, versions and commit, which every figure is kept with."""
    return {
        "machine": machine(device),
        "processor": processor(),
        "architecture": architecture(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "float32": torch.get_float32_matmul_precision(),
        "packages": {name: installed(name) for name in PACKAGES},
        "extension": _extension.build_info(),
        "commit": commit(),
    }


def limits(device: str, dtype: torch.dtype, rounds: int = 7) -> dict[str, float]:
    """The copy bandwidth and the GEMM rate of this run, in GB/s and GFLOP/s.

    The copy reads and writes 256 MB, more than any cache holds; the product is 2048³ (8192³ on CUDA).
    """
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = interleaved(
        {"copy": lambda: target.copy_(source), "gemm": lambda: a @ b}, rounds, device, launched=True
    )
    return {
        "copy GB/s": 2e-9 * source.numel() * source.element_size() / times["copy"].median,
        "GEMM GFLOP/s": 2e-9 * size**3 / times["gemm"].median,
    }
